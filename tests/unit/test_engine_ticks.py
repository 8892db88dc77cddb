"""Policies that preempt decide at ticks, also under a real clock, whose wakes always come a little late."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World
from things import PEOPLE

from gpusched.model.events import ServiceStopping, Woke
from gpusched.model.policy import Placement, PolicyName, PolicyRules
from gpusched.model.rules import Rules

LATE = pytest.mark.parametrize("late", [0.0, 0.004], ids=["on time", "late"])


def a_world(devices: int, policy: PolicyRules) -> World:
    return World(devices, rules=replace(Rules.default(), policy=policy))


def las() -> PolicyRules:
    return PolicyRules(PolicyName.LAS, las_limits=(600.0,), min_run=60.0, between_accounts=False)


def passes(world: World, seconds: float, late: float) -> None:
    """Time passes; each wake comes `late` seconds after the moment that the engine asked for."""
    end = world.now.later(seconds).boot
    for _ in range(1000):
        if world.wake_boot is None or world.wake_boot + late > end:
            world.now = world.now.later(end - world.now.boot)
            return
        world.now = world.now.later(max(0.0, world.wake_boot - world.now.boot) + late)
        world.handle(Woke())
    raise AssertionError(f"woken a thousand times within {seconds:.0f} s")


def runs(world: World, job: int) -> None:
    world.started(job)
    world.watches(job)


@LATE
def test_a_job_that_has_reached_its_limit_is_asked_to_leave_at_a_tick(late: float):
    world = a_world(1, las())
    first = world.submit()
    runs(world, first)
    passes(world, 1000, late)
    world.submit()
    passes(world, 120, late)
    assert world.asked_to_stop() == [first]


@LATE
def test_who_comes_into_a_queue_goes_behind_those_who_wait_there(late: float):
    world = a_world(1, las())
    first = world.submit()
    runs(world, first)
    passes(world, 10, late)
    second = world.submit()
    for leaves, comes in ((first, second), (second, first)):
        passes(world, 690, late)
        assert world.asked_to_stop() == [leaves]
        world.exits(leaves, code=85)
        assert world.running() == {comes}
        runs(world, comes)


def test_between_two_ticks_nobody_is_asked_to_leave():
    world = a_world(1, las())
    first = world.submit()
    runs(world, first)
    world.passes(20 + 17 * 60)
    world.passes(10)
    world.submit()
    assert world.asked_to_stop() == []


def test_while_the_service_stops_the_policy_wakes_nobody():
    world = a_world(1, las())
    runs(world, world.submit())
    world.submit()
    world.handle(ServiceStopping(PEOPLE["root"], ask_jobs=True))
    passes(world, 50, 0.0)  # until just before the end of the grace period
    assert world.killed() == []


@pytest.mark.parametrize("slots", [1, 2])
def test_jobs_without_devices_are_no_reason_to_move_others(slots: int):
    policy = PolicyRules(PolicyName.SRTF, placement=Placement.PACK, migrate=True, tick=0.0)
    world = World(2, rules=replace(Rules.default(cpu_jobs=slots), policy=policy))
    world.started(world.submit())
    without = [world.submit(gpus=0) for _ in range(2)]
    assert len(world.running().intersection(without)) == slots
