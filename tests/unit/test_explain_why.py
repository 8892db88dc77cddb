"""What `why` tells beyond the reason: who is ahead by how much, who could be asked to leave, and what must happen."""

from __future__ import annotations

import pytest
from builders import World
from futures import set_going

from gpusched.model.policy import PolicyName, PolicyRules, PreemptCost, Weights
from gpusched.model.rules import Rules
from gpusched.policy import explain
from gpusched.policy.explain import Word


def a_world(name: PolicyName, devices: int = 1, **policy: object) -> World:
    return World(devices, rules=Rules(policy=PolicyRules(name=name, **policy)))  # type: ignore[arg-type]


def ahead(world: World, job: int) -> dict[int, str]:
    return {a.job_id: a.text for a in explain.ahead(world.engine.view, world.job(job), world.now)}


def victims(world: World, job: int) -> dict[int, tuple[bool, str]]:
    found = explain.victims(world.engine.view, world.job(job), world.now)
    return {v.job_id: (v.preemptible, v.text) for v in found}


def at_length(world: World, job: int) -> explain.Reason:
    return explain.at_length(world.engine.view, world.job(job), world.now)


def used(world: World, who: str, seconds: float) -> None:
    """Somebody has had a device for so long."""
    job = world.submit(by=who)
    world.started(job)
    world.passes(seconds)
    world.exits(job)


# ---- who is ahead ------------------------------------------------------------------------------------------------


def test_the_priority_of_who_is_ahead_is_broken_down() -> None:
    world = a_world(PolicyName.BACKFILL)
    used(world, "ann", 90_000.0)
    used(world, "bob", 10_000.0)
    world.submit(by="ann")
    anns = world.submit(by="ann")
    world.passes(7 * 86400.0 / 10)
    bobs = world.submit(by="bob")
    text = ahead(world, anns)[bobs]
    assert text.startswith("priority ") and " fair share (bob used " in text and text.endswith(" −100 age")
    assert "% of late, ann " in text


def test_nice_and_size_are_named() -> None:
    world = a_world(PolicyName.BACKFILL, 4, weights=Weights(size=100.0))
    world.submit(gpus=4)
    small, large = world.submit(gpus=1, nice=300), world.submit(gpus=4)
    assert ahead(world, small)[large] == "priority 1,100 against 725: +300 nice, +75 size (4 to 1 GPUs)"


@pytest.mark.parametrize(
    ("policy", "first", "second", "text"),
    [
        (PolicyName.FIFO, {}, {}, "submitted earlier"),
        (PolicyName.SJF, {"expected": 60.0}, {"expected": 600.0}, "is expected to run 1:00, this one 10:00"),
        (PolicyName.SJF, {"expected": 60.0}, {}, "is expected to run 1:00, nobody knows how long this one runs"),
        (PolicyName.SRTF, {"expected": 60.0}, {"expected": 600.0}, "has 1:00 left, this one 10:00"),
        (PolicyName.SRSF, {"expected": 60.0}, {"expected": 50.0, "gpus": 2},
         "has 1:00 on 1 device left, this one 0:50 on 2"),
        (PolicyName.LAS, {}, {}, "submitted earlier"),
    ],
)  # fmt: skip
def test_each_policy_says_why_in_its_own_terms(policy: PolicyName, first: dict, second: dict, text: str) -> None:
    world = a_world(policy, 2)
    world.submit(gpus=2, qos="high", expected=1.0)
    one, two = world.submit(**first), world.submit(**second)
    assert ahead(world, two) == {one: text}


def test_a_job_that_has_waited_too_long_goes_first_and_says_so() -> None:
    world = a_world(PolicyName.SJF, patience=3600.0)
    world.submit()
    slow = world.submit(expected=9999.0)
    world.passes(3601.0)
    quick = world.submit(expected=1.0)
    assert ahead(world, quick)[slow] == "has waited for more than 1:00:00 (patience), so it goes before its level"


# ---- backfill: what is kept, and for how long -------------------------------------------------------------------


def a_gap() -> tuple[World, int, int]:
    """Two devices: one is taken for 25 minutes, a job for both waits, and one device is free until then."""
    world = a_world(PolicyName.BACKFILL, 2)
    running = world.submit(time_limit=1500.0)
    set_going(world)
    return world, running, world.submit(gpus=2, time_limit=60.0)


def test_a_free_device_is_reserved_and_a_job_that_is_too_long_for_the_gap_says_so() -> None:
    world, _, large = a_gap()
    long = world.submit(time_limit=7200.0)
    why = world.why(long)
    assert why.word is Word.PRIORITY
    assert why.text == (
        f"job {large} is ahead and has devices 0,1 reserved in about 25:00; this one may run for 2:00:00"
    )
    assert why.next == f"that job starts, or this one needs less time: gpusched update {long} --time 25:00"
    unknown = world.submit()
    assert world.why(unknown).text.endswith("; nobody knows how long this one runs")
    world.update(long, time_limit=1400.0)
    assert long in world.running(), "the advice was right"


def test_where_nobody_knows_no_moment_is_named() -> None:
    world = a_world(PolicyName.BACKFILL, 2)
    running = world.submit()
    set_going(world)
    large = world.submit(gpus=2)
    assert at_length(world, large).next == f"job {running} ends, nobody knows when"
    assert "about" not in at_length(world, world.submit(gpus=2)).text


def test_the_one_that_has_the_reservation_says_who_ends_and_when() -> None:
    world, running, large = a_gap()
    assert at_length(world, large).text == "needs 2 devices, 1 of 2 free"
    assert at_length(world, large).next == f"job {running} (its time limit) ends, in about 25:00"
    behind = world.submit(gpus=2)
    assert at_length(world, behind).text == (
        f"needs 2 devices, 1 of 2 free; job {large} is ahead and has devices 0,1 reserved in about 25:00"
    )
    assert at_length(world, behind).next == (
        f"job {running} (its time limit) ends, in about 25:00, then job {large} starts, and more end"
    )


def test_a_job_that_could_never_run_is_not_said_to_be_in_the_way() -> None:
    world = World(2)
    running = world.submit()
    set_going(world)
    large = world.submit(gpus=2)
    world.fails(1)
    waiting = world.submit()
    assert world.why(large).word is Word.DEVICE_UNAVAILABLE
    assert world.why(waiting).word is Word.RESOURCES
    world.exits(running)
    assert world.running() == {waiting}


# ---- whom it could ask ------------------------------------------------------------------------------------------


def shared_by_las() -> tuple[World, int]:
    """A device on which a job has run for two hours."""
    world = a_world(PolicyName.LAS, las_limits=(3600.0,))
    running = world.submit()
    set_going(world)
    world.passes(7200.0)
    return world, running


def test_under_las_a_job_that_has_had_more_is_asked_at_the_next_tick() -> None:
    world, running = shared_by_las()
    world.passes(30.0)
    waiting = world.submit()
    assert victims(world, waiting) == {running: (True, "is asked to leave at the next tick, in 50 s")}
    assert at_length(world, waiting).next == f"job {running} is asked to leave at the next tick, in 50 s"
    world.passes(60.0)
    assert world.asked_to_stop() == [running], "what was said has come true"


def test_several_who_are_asked_are_named_together() -> None:
    world = a_world(PolicyName.SRTF, devices=2)
    running = [world.submit(expected=50_000.0) for _ in range(2)]
    set_going(world)
    world.passes(7200.0 + 30.0)
    gang = world.submit(expected=60.0, gpus=2)
    one, two = running
    assert at_length(world, gang).next == f"jobs {one}, {two} are asked to leave at the next tick, in 50 s"


def test_who_stands_behind_a_gang_and_keeps_its_devices_all_the_same_is_not_said_to_stand_before_it() -> None:
    world = a_world(PolicyName.SRSF, devices=2)
    long, short = world.submit(expected=50_000.0), world.submit(expected=8000.0)
    set_going(world)
    world.passes(7200.0)
    gang = world.submit(expected=790.0, gpus=2)  # 1580 device-seconds, the short one has 780 left then
    told = victims(world, gang)
    assert told[short] == (False, "it keeps its devices: has 13:00 on 1 device left, this one 13:10 on 2")
    assert told[long] == (False, "it keeps its devices: those before this one leave fewer than the 2 that it needs")


def test_a_job_that_has_only_just_started_says_how_long_it_is_left_in_peace() -> None:
    world = a_world(PolicyName.SRTF)
    running = world.submit(expected=7200.0)
    set_going(world)
    world.passes(240.0)
    quick = world.submit(expected=60.0)
    assert victims(world, quick)[running] == (
        False, "it has run for 4:00, and everybody may run for 10:00 at least (min_run)"
    )  # fmt: skip


def test_a_job_that_never_saved_is_not_asked() -> None:
    world = a_world(PolicyName.SRTF)
    running = world.submit(expected=7200.0)
    world.started(running)
    world.passes(1200.0)
    quick = world.submit(expected=60.0)
    text = "it has not shown that it can save and go on: it neither watches for requests nor has saved"
    assert victims(world, quick)[running] == (False, text)
    world.watches(running)
    assert victims(world, quick)[running][0]


def test_moving_that_costs_more_than_it_brings_is_named() -> None:
    world = a_world(PolicyName.SRTF, cost=PreemptCost(600.0, 600.0, 600.0))
    running = world.submit(expected=1500.0)
    set_going(world)
    world.passes(1200.0)
    quick = world.submit(expected=60.0)
    text = "moving it costs more (10:00 on each of its devices) than this one gains"
    assert victims(world, quick)[running] == (False, text)
    world.passes(100.0)
    assert not world.asked_to_stop()


def test_a_job_that_stands_before_it_keeps_its_devices_and_says_why() -> None:
    world = a_world(PolicyName.SRTF)
    running = world.submit(expected=1500.0)
    set_going(world)
    world.passes(1200.0)
    slow = world.submit(expected=6000.0)
    asked, text = victims(world, slow)[running]
    assert not asked
    assert text.startswith("it keeps its devices: has ") and text.endswith(" left, this one 1:40:00")


def test_the_devices_of_one_that_must_go_may_go_to_others() -> None:
    world, running = shared_by_las()
    first, second = world.submit(), world.submit()
    assert victims(world, first)[running][0]
    assert victims(world, second)[running] == (False, "its devices go to jobs that come before this one")


def test_the_levels_decide_where_jobs_of_one_level_do_not_share() -> None:
    world = World(2)
    low, normal = world.submit(qos="low", gpus=1), world.submit()
    set_going(world)
    waiting = world.submit(gpus=2)
    assert victims(world, waiting) == {
        low: (True, "QoS normal may preempt low"), normal: (False, "QoS normal may not preempt normal"),
    }  # fmt: skip
