"""Fair share in the engine: who goes first after others have used much, within one cycle, and over a restart."""

from __future__ import annotations

from typing import Any

import pytest
from builders import PEOPLE, World

from gpusched.model.errors import GpuschedError, NotAllowed, UsageError
from gpusched.model.policy import DAY, FairShare, PolicyName, PolicyRules, Weights
from gpusched.model.rules import Partition, Rules
from gpusched.policy.priority import charged, factors, scheduling_order, size, static

HOUR = 3600.0


def rules(policy: PolicyName = PolicyName.BACKFILL, **more: Any) -> Rules:
    return Rules(policy=PolicyRules(name=policy, **more))


@pytest.mark.parametrize("policy", [PolicyName.BACKFILL, PolicyName.FIT_FIRST])
def test_who_has_used_little_goes_before_who_has_used_much(policy: PolicyName) -> None:
    world = World(1, rules=rules(policy))
    first = world.submit(by="ann")
    world.started(first)
    hers, his = world.submit(by="ann"), world.submit(by="bob")
    world.passes(HOUR)
    world.exits(first)
    assert world.running() == {his}
    world.started(his)
    world.exits(his)
    assert world.running() == {hers}


def test_a_policy_without_priority_keeps_the_order_of_submission() -> None:
    world = World(1, rules=rules(PolicyName.FIFO))
    first = world.submit(by="ann")
    world.started(first)
    hers = world.submit(by="ann")
    world.submit(by="bob")
    world.passes(HOUR)
    world.exits(first)
    assert world.running() == {hers}


def test_a_burst_of_one_account_does_not_take_all_devices_that_become_free_at_once() -> None:
    world = World(4, rules=rules())
    blocker = world.submit(by="root", gpus=4)
    world.started(blocker)
    hers = [world.submit(by="ann") for _ in range(4)]
    his = [world.submit(by="bob") for _ in range(4)]
    world.exits(blocker)
    assert world.running() == {*hers[:2], *his[:2]}


def test_larger_shares_get_more_of_what_becomes_free() -> None:
    shares = FairShare(shares=(("ann", 3.0),))
    world = World(4, rules=rules(fair_share=shares))
    blocker = world.submit(by="root", gpus=4)
    world.started(blocker)
    his = [world.submit(by="bob") for _ in range(4)]
    hers = [world.submit(by="ann") for _ in range(4)]
    world.exits(blocker)
    assert world.running() == {*hers[:3], his[0]}


def test_an_account_of_its_own_is_charged_instead_of_the_user() -> None:
    world = World(1, rules=rules())
    first = world.submit(by="ann", account="vision")
    world.started(first)
    same, other = world.submit(by="bob", account="vision"), world.submit(by="ann")
    world.passes(HOUR)
    world.exits(first)
    assert world.running() == {other}
    ledger = world.engine.view.ledger
    assert ledger.usage("vision", world.now.wall) == pytest.approx(HOUR, rel=1e-2)
    assert (ledger.usage("bob", world.now.wall), same in world.running()) == (0.0, False)


def test_old_use_is_forgiven_with_the_half_life_and_age_outweighs_it_in_the_end() -> None:
    world = World(1, rules=rules(weights=Weights(age=100.0, age_days=1.0, fair_share=150.0)))
    first = world.submit(by="ann")
    world.started(first)
    hers = world.submit(by="ann")
    world.passes(2 * DAY)  # 200 points of age, against at most 150 of fair share
    his = world.submit(by="bob")
    world.exits(first)
    assert world.running() == {hers}
    assert his not in world.running()


def test_nice_lets_others_go_first_and_only_administrators_may_go_below_zero() -> None:
    world = World(1, rules=rules())
    first = world.submit(by="root")
    world.started(first)
    nice, plain = world.submit(by="ann", nice=50), world.submit(by="ann")
    with pytest.raises(NotAllowed, match="only administrators may go below 0"):
        world.submit(by="ann", nice=-1)
    with pytest.raises(UsageError, match="out of range"):
        world.submit(by="root", nice=-10_001)
    with pytest.raises(NotAllowed, match="only administrators"):
        world.update(plain, by="ann", nice=-5)
    assert world.update(nice, by="root", nice=-100) == "changed: nice = -100"
    world.exits(first)
    assert world.running() == {nice}
    with pytest.raises(GpuschedError, match="nice can change only while it waits"):
        world.update(nice, by="ann", nice=5)
    assert world.update(nice, by="ann", expected=HOUR) == "changed: expected = 1:00:00"
    assert world.update(nice, by="ann", expected=0.0) == "changed: no expected"
    assert world.job(nice).spec.expected is None


def test_usage_is_the_same_after_a_crash_and_only_ended_attempts_are_kept() -> None:
    world = World(2, rules=rules())
    first, second = world.submit(by="ann"), world.submit(by="bob")
    world.started(first, second)
    world.passes(HOUR)
    world.exits(first)
    world.passes(HOUR)
    before = world.engine.view.ledger
    used = {account: before.usage(account, world.now.wall) for account in ("ann", "bob")}
    assert used["bob"] > used["ann"] > 0
    (row,) = world.store.load().usage
    assert (row.account, row.device_seconds) == ("ann", pytest.approx(HOUR, rel=1e-2))
    world.crash()
    after = world.engine.view.ledger
    assert after is not before
    for account, seconds in used.items():
        assert after.usage(account, world.now.wall) == pytest.approx(seconds)
    world.exits(second)
    assert after.usage("bob", world.now.wall) == pytest.approx(used["bob"])


def test_an_attempt_that_never_started_is_not_charged() -> None:
    world = World(2, rules=rules())
    job = world.submit(by="ann", gpus=2)
    assert world.engine.view.ledger.usage("ann", world.now.wall) == pytest.approx(2 * 900)
    world.never_starts(job)
    rows = {row.account: row.device_seconds for row in world.store.load().usage}
    assert rows == {"ann": 0.0}


def test_a_share_of_a_device_is_charged_by_its_memory() -> None:
    world = World(1, rules=rules(fair_share=FairShare(entry_hours=0.0)))
    job = world.submit(by="ann", shared=True, gpu_mem_mib=6144)
    attempt = world.engine.view.live[job]
    total = world.engine.view.slots["GPU-0"].device.total_mib
    assert charged(attempt) == pytest.approx(6144 / total)
    world.crash()
    assert charged(world.engine.view.live[job]) == pytest.approx(6144 / total)


def test_the_total_is_its_static_part_and_what_is_equal_for_all_or_for_the_account() -> None:
    world = World(4, rules=rules(weights=Weights(size=100.0)))
    blocker = world.submit(by="root", gpus=4)
    world.started(blocker)
    waiting = [world.submit(by="ann", gpus=3, nice=7)]
    world.passes(HOUR)
    waiting += [world.submit(by="bob"), world.submit(by="ann", gpus=2)]
    world.passes(10 * HOUR)
    view, weights = world.engine.view, world.rules.policy.weights
    common = {
        round(
            factors(view, job, world.now).total
            - static(view, job)
            - weights.fair_share * view.ledger.factor(job.account, world.now.wall),
            3,
        )
        for job in map(world.job, waiting)
    }
    assert len(common) == 1
    first = factors(view, world.job(waiting[0]), world.now)
    assert first.age.value == pytest.approx(11 / (7 * 24))
    assert (first.size.value, first.nice.points, first.qos, first.level) == (0.75, -7.0, "normal", 100)
    assert first.fair_share.value == 1.0
    assert first.total == pytest.approx(1000 * 11 / 168 + 2000 + 75 - 7)


def test_a_job_that_waits_for_something_else_gains_no_age() -> None:
    world = World(1, rules=rules())
    job = world.submit(by="ann", hold=True)
    world.passes(HOUR)
    found = factors(world.engine.view, world.job(job), world.now)
    assert (found.age.value, found.size.value) == (0.0, 1.0)
    assert "root" in PEOPLE


def test_within_one_cycle_each_start_counts_at_once_also_where_much_has_been_used_before() -> None:
    world = World(2, rules=rules())
    before = [world.submit(by="ann"), world.submit(by="bob")]
    world.started(*before)
    world.passes(500 * HOUR)
    hers = [world.submit(by="ann", hold=True), world.submit(by="ann", hold=True, gpu_type="4090")]
    his = world.submit(by="bob", hold=True)
    for job in before:
        world.exits(job)
    world.release(*hers, his, by="root")
    assert world.running() == {hers[0], his}


def test_age_counts_from_the_moment_at_which_a_job_could_have_started() -> None:
    world = World(1, rules=rules())
    before = world.submit()
    late = world.submit(begin=world.now.wall + 1000)
    world.passes(500)
    early = world.submit()
    world.passes(1000)
    world.exits(before)
    assert (world.running(), world.where(late)) == ({early}, ())


def test_the_size_of_a_gang_is_measured_by_its_own_partition() -> None:
    parts = {"default": Partition("default"), "left": Partition("left", ("0", "1"))}
    world = World(4, rules=Rules(partitions=parts))
    jobs = [world.job(world.submit(gpus=2, partition=name)) for name in parts]
    assert [size(world.engine.view, job) for job in jobs] == [0.5, 1.0]


def test_of_those_past_their_patience_the_queue_too_shows_who_has_waited_longest_first() -> None:
    world = World(1, rules=rules(patience=HOUR))
    world.started(world.submit())
    hers = world.submit()
    world.passes(1)
    his = world.submit(by="bob")
    order = [hers, his]
    world.passes(600)
    assert sorted(order, key=lambda job: scheduling_order(world.engine.view, world.now)(world.job(job))) == [his, hers]
    world.passes(2 * HOUR)
    assert sorted(order, key=lambda job: scheduling_order(world.engine.view, world.now)(world.job(job))) == [hers, his]
