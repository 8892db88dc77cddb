"""`migrate`: running jobs go on on other devices, so that a gang finds room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import World
from elastic_worlds import resized
from things import GIB, Gpu

from gpusched.model.policy import Placement, PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy import explain

HOUR = 3600.0


def apart(world: World) -> tuple[int, int]:
    """Has two jobs of one device alone on a node each. Returns them."""
    first = world.submit(gpus=1, expected=5 * HOUR)
    filler = world.submit(gpus=3, expected=HOUR)
    second = world.submit(gpus=1, expected=5 * HOUR)
    for job in (first, filler, second):
        world.started(job)
        world.watches(job)
    world.exits(filler)
    assert world.where(first)[0] // 4 != world.where(second)[0] // 4
    return first, second


def a_world(**policy: Any) -> World:
    rules = PolicyRules(**{"name": PolicyName.SRTF, "placement": Placement.PACK, "migrate": True, **policy})
    return World(*(Gpu(i, group=f"node {i // 4}") for i in range(8)), rules=replace(Rules.default(), policy=rules))


def test_a_job_goes_on_elsewhere_so_that_a_gang_has_a_node_of_its_own() -> None:
    world = a_world()
    first, second = apart(world)
    world.passes(HOUR)
    gang = world.submit(gpus=4, expected=9 * HOUR)
    verdicts = {v.job_id: v for v in explain.victims(world.engine.view, world.job(gang), world.now)}
    assert verdicts[first].preemptible and "can go on on other devices" in verdicts[first].text
    assert not verdicts[second].preemptible
    world.passes(60.0)
    assert world.asked_to_stop() == [first], "the first of two that cost the same"
    assert world.why(gang).word == "Preempting"
    assert "goes on elsewhere" in world.why(gang).text
    resized(world, first)
    assert world.states(first, second) == [JobState.STARTING, JobState.RUNNING]
    assert len({world.where(job)[0] // 4 for job in (first, second)}) == 1, "both on one node now"
    assert len({index // 4 for index in world.where(gang)}) == 1
    assert world.job(first).preemptions == 0 and world.job(first).resizes == 1


def test_nobody_takes_the_place_of_a_job_that_is_being_moved() -> None:
    world = a_world()
    first, second = apart(world)
    world.passes(HOUR)
    world.submit(gpus=4, expected=9 * HOUR)
    world.passes(60.0)
    late = [world.submit(gpus=1, expected=60.0) for _ in range(4)]
    resized(world, first)
    assert world.states(first) == [JobState.STARTING]
    assert sum(bool(world.where(job)) for job in late) == 2, "what was free besides"
    assert world.states(second) == [JobState.RUNNING]


def test_nobody_is_moved_before_its_minimum_time_or_for_little() -> None:
    world = a_world()
    first, _ = apart(world)
    world.submit(gpus=4, expected=9 * HOUR)
    world.passes(540.0)
    assert world.asked_to_stop() == [], "min_run is 600 s"
    world.passes(120.0)
    assert world.asked_to_stop() == [first]

    world = a_world()
    apart(world)
    world.passes(5 * HOUR - 10.0)
    world.submit(gpus=4, expected=9 * HOUR)
    world.passes(9.0)
    assert world.asked_to_stop() == [], "they are over in a few seconds"


def test_without_migrate_the_gang_waits() -> None:
    world = a_world(migrate=False)
    apart(world)
    world.passes(HOUR)
    gang = world.submit(gpus=4, expected=9 * HOUR)
    world.passes(HOUR)
    assert world.asked_to_stop() == [] and world.states(gang) == [JobState.PENDING]


def test_a_job_of_a_higher_level_is_not_moved_for_a_lower_one() -> None:
    world = a_world()
    first, second = apart(world)
    for job in (first, second):
        world.update(job, by="root", qos="high")
    world.passes(HOUR)
    world.submit(gpus=4, expected=9 * HOUR)
    world.passes(HOUR)
    assert world.asked_to_stop() == []


def test_past_its_patience_a_gang_is_not_passed_though_enough_devices_are_open_by_number() -> None:
    world = a_world(migrate=False, patience=2 * HOUR)
    first, second = apart(world)
    gang = world.submit(gpus=4, expected=9 * HOUR)
    early = world.submit(gpus=1, expected=60.0)
    assert world.where(early), "six devices are open, and the gang finds no place"
    world.passes(2 * HOUR)
    assert world.why(gang).word == "Resources"
    late = world.submit(gpus=1, expected=60.0)
    assert world.states(late) == [JobState.PENDING]
    world.exits(second)
    world.exits(early)
    assert len({index // 4 for index in world.where(gang)}) == 1
    assert world.where(late), "behind the gang there is room again"
    assert world.states(first) == [JobState.RUNNING]


def test_nobody_is_moved_onto_devices_that_are_kept_for_a_job_past_its_patience() -> None:
    """The gang of the other kind would be passed for ever."""
    h100 = {"name": "NVIDIA H100 80GB HBM3", "total_mib": 80 * GIB}
    gpus = [Gpu(0, group="a"), Gpu(1, group="a"), *(Gpu(i, group="b", **h100) for i in (2, 3))]  # type: ignore[arg-type]
    policy = PolicyRules(PolicyName.SRTF, Placement.PACK, migrate=True, patience=2 * HOUR)
    for overdue in (False, True):
        world = World(*gpus, rules=replace(Rules.default(), policy=policy))
        stays = world.submit(gpus=1, gpu_type="h100", expected=50 * HOUR, requeue=False)
        anywhere = world.submit(gpus=1, expected=50 * HOUR)
        world.started(stays, anywhere)
        world.watches(anywhere)
        assert (world.where(stays), world.where(anywhere)) == ((2,), (0,))
        if overdue:
            world.submit(gpus=2, gpu_type="h100", expected=60 * HOUR)
        world.passes(3 * HOUR)
        gang = world.submit(gpus=2, gpu_type="4090", expected=HOUR, qos="normal")
        world.passes(60.0)
        moved = world.kinds(anywhere)[-2:] == ["resizing", "stopping"]
        assert moved is not overdue
        if moved:
            resized(world, anywhere)
            assert (world.where(anywhere), world.where(gang)) == ((3,), (0, 1))
