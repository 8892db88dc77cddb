"""Running jobs are moved to make room for a gang (`migrate`): who is moved, and when nobody is."""

from __future__ import annotations

from dataclasses import replace

from builders import Gpu, World

from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import Placement, PolicyName, PolicyRules
from gpusched.model.rules import Rules

PATIENCE = 3600.0


def at_once(world: World) -> int:
    """A job that starts; before it runs nobody is moved and nobody else starts."""
    job = world.submit(expected=10_000.0)
    world.started(job)
    return job


def scattered(watching: tuple[bool, bool] = (True, True), limits: LimitRules | None = None) -> tuple[World, int, int]:
    """Two groups of two devices, with one job in each: a gang of two finds no place unless one of them moves."""
    published = {"placement": Placement.PACK, "migrate": True, "calm": False, "tick": 0.0}
    policy = PolicyRules(PolicyName.SRTF, patience=PATIENCE, **published)  # type: ignore[arg-type]
    rules = replace(Rules.default(), policy=policy, limits=limits or LimitRules())
    world = World(*(Gpu(index, group="ab"[index // 2]) for index in range(4)), rules=rules)
    first, between, last = (at_once(world) for _ in range(3))
    for job, watches in zip((first, last), watching, strict=True):
        if watches:
            world.watches(job)
    world.exits(between)
    assert (world.where(first), world.where(last)) == ((0,), (2,))
    return world, first, last


def test_one_of_two_scattered_jobs_is_moved_to_the_other_for_a_gang():
    world, first, last = scattered()
    gang = world.submit(gpus=2, expected=10.0)
    (moved,) = world.asked_to_stop()
    stays = last if moved == first else first
    world.exits(moved, code=85, saved_step=1)
    assert len(world.where(gang)) == 2
    assert {world.where(moved)[0] // 2, world.where(stays)[0] // 2} == {1 - world.where(gang)[0] // 2}


def test_who_cannot_be_moved_keeps_its_place_and_the_other_one_moves():
    for movable in (0, 1):
        world, *jobs = scattered((movable == 0, movable == 1))
        world.submit(gpus=2, expected=10.0)
        assert world.asked_to_stop() == [jobs[movable]]


def test_nobody_is_moved_for_a_gang_that_would_be_at_its_limit():
    world, *_ = scattered(limits=LimitRules(user={"bob": Limits(max_running=1)}))
    world.started(world.submit(by="bob", gpus=0))
    world.submit(by="bob", gpus=2, expected=10.0)
    assert world.asked_to_stop() == []


def test_where_nobody_needs_to_be_moved_nobody_is():
    world, *_ = scattered()
    single = world.submit(expected=10.0)
    assert (len(world.where(single)), world.asked_to_stop()) == (1, [])


def test_nobody_is_moved_for_a_second_element_of_an_array_that_runs_one_at_a_time():
    world, *_ = scattered()
    world.started(world.submit(expected=10.0, array="0-2%1"))
    assert world.asked_to_stop() == []
    assert len(world.running()) == 3


def test_gangs_that_come_together_get_different_devices():
    world, first, last = scattered()
    world.exits(first)
    world.exits(last)
    pairs = [world.submit(gpus=2, expected=10.0, hold=True) for _ in range(2)]
    single = world.submit(expected=20.0, hold=True)
    world.release(*pairs, single)
    assert [world.where(job) for job in (*pairs, single)] == [(0, 1), (2, 3), ()]


def test_while_one_is_on_its_way_nobody_else_is_moved():
    world, *_ = scattered()
    world.submit(gpus=2, expected=10.0)
    assert len(world.asked_to_stop()) == 1
    world.submit(gpus=2, expected=20.0)
    assert world.asked_to_stop() == []


def test_a_gang_of_more_than_a_group_gets_whole_groups():
    world, first, last = scattered()
    world.exits(first)
    gang = world.submit(gpus=3, expected=10.0)
    assert (world.where(last), world.where(gang)) == ((2,), (0, 1, 3))


def test_a_gang_of_two_groups_has_everybody_moved_out_of_its_way():
    world, first, last = scattered()
    world.submit(gpus=4, expected=10.0)
    assert sorted(world.asked_to_stop()) == [first, last]


def test_nobody_is_moved_for_a_second_gang_that_would_be_at_its_limit():
    world, *_ = scattered(limits=LimitRules(user={"bob": Limits(max_running=1)}))
    pairs = [world.submit(by="bob", gpus=2, expected=10.0, hold=True) for _ in range(2)]
    world.release(*pairs, by="bob")
    assert len(world.asked_to_stop()) == 1


def test_nobody_starts_behind_a_gang_past_its_patience_that_finds_no_place():
    world, *_ = scattered((False, False))
    gang = world.submit(gpus=2, expected=1000.0)
    world.passes(PATIENCE + 400)
    small = world.submit(expected=10.0)
    assert (world.where(gang), world.where(small)) == ((), ())


def test_while_one_is_on_its_way_those_behind_are_told_whom_they_wait_for():
    world, *_ = scattered()
    world.submit(expected=10_000.0)
    waits, behind = world.submit(expected=10_000.0), world.submit(expected=10_000.0)
    assert (world.where(waits), world.where(behind)) == ((), ())
    assert world.why(behind).text == f"free devices are being kept for job {waits}"
