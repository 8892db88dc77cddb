"""Quotas in small worlds: who runs as of right, who only on what nobody else wants, and who leaves for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import GIB, World

from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import PreemptMode, Qos, Rules, default_qos
from gpusched.policy.explain import ahead, victims
from gpusched.policy.rights import guaranteed, over_quota

QUOTAS = {"vision": 2.0, "*": 1.0}
AT_ONCE = PolicyRules(tick=0.0, min_run=0.0)  # who may be asked to leave is asked at once


def quota_world(*gpus: int, quota: dict[str, float] = QUOTAS, policy: PolicyName = PolicyName.BACKFILL) -> World:
    rules = Rules(limits=LimitRules(quota=quota), policy=replace(AT_ONCE, name=policy))
    return World(*gpus, rules=rules)


def watching(world: World, *jobs: int) -> None:
    """They run, and can be asked to save and leave under any policy."""
    for job in jobs:
        world.started(job)
        world.watches(job)


def over(world: World, *jobs: int) -> list[bool]:
    return [over_quota(world.engine.view, world.job(job)) for job in jobs]


def test_of_an_accounts_running_jobs_the_latest_started_are_over_its_quota():
    world = quota_world(6)
    jobs = []
    for gpus in (1, 2, 1):
        jobs.append(world.submit(account="vision", gpus=gpus))
        world.passes(1)
    assert over(world, *jobs) == [False, True, True]
    world.exits(jobs[1])
    assert over(world, jobs[0], jobs[2]) == [False, False]
    assert guaranteed(world.engine.view, world.job(jobs[2]))


def test_started_at_the_same_moment_the_higher_id_is_over():
    world = quota_world(4)
    jobs = [world.submit(account="vision") for _ in range(3)]
    assert over(world, *jobs) == [False, False, True]


def test_sharing_jobs_use_their_part_and_jobs_without_devices_nothing():
    world = quota_world(2, quota={"*": 0.5})
    jobs = [world.submit(shared=True, gpu_mem_mib=6 * GIB) for _ in range(3)]
    assert over(world, *jobs) == [False, False, True]
    assert over(world, world.submit(gpus=0)) == [False]


def test_an_account_without_a_quota_is_neither_within_nor_over_one():
    world = quota_world(4, quota={"vision": 1.0})
    other = world.submit(gpus=2)
    assert over(world, other) == [False]
    assert not guaranteed(world.engine.view, world.job(other))


@pytest.mark.parametrize("policy", list(PolicyName))
def test_over_its_quota_an_account_runs_on_what_nobody_else_wants(policy):
    world = quota_world(4, policy=policy)
    jobs = [world.submit(account="vision") for _ in range(4)]
    assert world.running() == set(jobs)
    assert over(world, *jobs) == [False, False, True, True]


@pytest.mark.parametrize("policy", list(PolicyName))
def test_a_job_within_its_quota_has_one_over_it_leave_also_in_the_same_level(policy):
    world = quota_world(3, policy=policy)
    jobs = [world.submit(account="vision") for _ in range(3)]
    watching(world, *jobs)
    world.passes(5)
    his = world.submit(by="bob")
    assert world.asked_to_stop() == [jobs[2]]
    world.exits(jobs[2], code=85, saved_step=1)
    assert world.running() == {jobs[0], jobs[1], his}
    assert over(world, jobs[2], his) == [True, False]


@pytest.mark.parametrize("policy", list(PolicyName))
def test_who_waits_over_a_quota_asks_nobody_to_leave(policy):
    world = quota_world(3, policy=policy)
    running = [world.submit(account="vision", qos="low"), world.submit(by="bob", qos="low", gpus=2)]
    watching(world, *running)
    world.passes(5)
    for account in ("vision", "vision"):
        world.submit(account=account, qos="high")
    # the first is within its quota and has bob's job leave, who is over his; the second is over it
    assert world.asked_to_stop() == [running[1]]
    world.exits(running[1], code=85, saved_step=1)
    world.passes(5)
    assert world.asked_to_stop() == []


@pytest.mark.parametrize("policy", list(PolicyName))
def test_of_those_who_wait_the_ones_over_a_quota_come_last_whatever_their_level(policy):
    world = quota_world(3, quota={"vision": 1.0, "*": 5.0}, policy=policy)
    blocks = world.submit(by="bob", gpus=3)
    over_it = [world.submit(account="vision", qos="high") for _ in range(3)]
    within = world.submit(by="bob", account="bob2", qos="low")
    world.exits(blocks)
    assert world.running() == {over_it[0], within, over_it[1]}
    assert over(world, *over_it, within) == [False, True, True, False]


def test_a_level_that_cancels_its_victims_does_not_cancel_for_a_quota():
    levels = {**default_qos(), "normal": Qos("normal", 100, ("low",), PreemptMode.CANCEL)}
    world = World(1, rules=Rules(qos=levels, limits=LimitRules(quota={"bob": 1.0, "*": 0.0})))
    victim = world.submit()
    world.started(victim)
    world.submit(by="bob", qos="low")
    assert world.asked_to_stop() == [victim]
    world.exits(victim, code=85, saved_step=1)
    assert str(world.job(victim).state) == "PENDING"


def test_who_is_over_a_quota_leaves_before_a_job_of_a_lower_level_that_is_within_its_own():
    world = quota_world(2, quota={"vision": 0.0, "*": 4.0})
    low, borrowed = world.submit(by="bob", qos="low"), world.submit(account="vision")
    world.submit(by="ann", qos="high")
    assert world.asked_to_stop() == [borrowed]
    assert world.where(low)


def test_why_tells_of_quotas():
    world = quota_world(3)
    jobs = [world.submit(account="vision") for _ in range(3)]
    waits = world.submit(account="vision")
    text = "account vision uses 3 devices, its quota is 2"
    assert "with this job account vision would use 4 devices, its quota is 2" in world.why(waits).text
    his = world.submit(by="bob", gpus=2)
    view = world.engine.view
    assert [(v.job_id, v.preemptible) for v in victims(view, world.job(waits), world.now)] == [(j, False) for j in jobs]
    assert "asks nobody to leave" in victims(view, world.job(waits), world.now)[0].text
    assert over(world, his) == [True]  # two devices, and his quota is one
    one = world.submit(by="bob", hold=True)
    found = {v.job_id: v for v in victims(view, world.job(one), world.now)}
    assert [found[job].preemptible for job in jobs] == [False, False, True]
    assert found[jobs[2]].text == text


def test_why_says_who_goes_first_because_of_a_quota():
    world = quota_world(2, quota={"vision": 0.0, "*": 4.0})
    for _ in range(2):
        world.submit(by="bob")
    borrows = world.submit(account="vision", qos="high")
    his = world.submit(by="bob", gpus=2)
    (first,) = ahead(world.engine.view, world.job(borrows), world.now)
    assert (first.job_id, first.text) == (
        his, "with this job account vision would use 1 device, its quota is 0: others go first"
    )  # fmt: skip


def test_limits_and_quotas_go_together():
    limits = LimitRules(user={"ann": Limits(max_devices=1)}, quota={"*": 0.0})
    world = World(4, rules=Rules(limits=limits))
    first, second = world.submit(), world.submit()
    assert world.running() == {first}
    assert "at most 1 device" in world.why(second).text


def test_a_crash_changes_nothing_about_who_is_over():
    world = quota_world(4)
    jobs = []
    for _ in range(4):
        jobs.append(world.submit(account="vision"))
        world.passes(1)
    before = over(world, *jobs)
    world.crash()
    assert over(world, *jobs) == before == [False, False, True, True]


@pytest.mark.parametrize("wanted", [{}, {"shared": True, "gpu_mem_mib": 24 * GIB}])
def test_what_a_job_has_been_promised_is_not_counted_on_top_of_what_it_wants(wanted: dict[str, object]):
    world = quota_world(1)
    low = world.submit(qos="low")
    world.started(low)
    high = world.submit(by="bob", qos="high", **wanted)
    assert world.asked_to_stop() == [low]
    assert over(world, high) == [False]


def test_a_job_of_an_account_without_a_quota_takes_nothing_back_from_those_over_theirs():
    world = quota_world(3, quota={"vision": 1.0})
    watching(world, *(world.submit(account="vision") for _ in range(2)), world.submit(qos="low"))
    world.submit(by="bob", gpus=2)
    assert world.asked_to_stop() == []


def test_what_is_over_a_quota_is_taken_back_also_where_no_level_could_preempt():
    world = quota_world(2)
    jobs = [world.submit(account="bob", qos="high") for _ in range(2)]
    watching(world, *jobs)
    world.submit(account="vision", qos="high")
    assert world.asked_to_stop() == [jobs[1]]
