"""Nobody is asked to leave for a job that could not start when they have left, because a reservation begins by then."""

from __future__ import annotations

from builders import World
from elastic_worlds import goes_on
from reserving import HOUR, reserve

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState


def a_world(name: PolicyName = PolicyName.BACKFILL) -> tuple[World, int]:
    """A device with a job that has a minute to leave, reserved in two minutes."""
    rules = Rules(policy=PolicyRules(name, min_run=0.0, tick=0.0))
    world = World(1, rules=rules)
    low = world.submit(qos="low", expected=20 * HOUR, grace=60.0)
    goes_on(world, low)
    world.passes(HOUR)
    reserve(world, devices="0", start_in=120.0, users="bob")
    return world, low


def test_a_job_that_fits_before_the_reservation_only_if_the_device_were_free_now_disturbs_nobody() -> None:
    world, low = a_world()
    high = world.submit(qos="high", time_limit=90.0)
    assert world.asked_to_stop() == []
    assert world.states(low, high) == [JobState.RUNNING, JobState.PENDING]


def test_one_that_still_fits_when_the_others_have_left_gets_the_device() -> None:
    world, low = a_world()
    high = world.submit(qos="high", time_limit=50.0)
    assert world.asked_to_stop() == [low]
    world.passes(59.0)
    world.exits(low, code=85, saved_step=1)
    assert world.states(high) == [JobState.STARTING]


def test_nor_among_equals() -> None:
    world, low = a_world(PolicyName.SRTF)
    equal = world.submit(qos="low", expected=90.0, requeue=False, time_limit=90.0)
    assert world.asked_to_stop() == []
    world.submit(qos="low", requeue=False, time_limit=50.0)
    assert world.asked_to_stop() == [low]
    assert world.states(equal) == [JobState.PENDING]


def test_another_device_is_taken_if_one_of_them_is_reserved_too_soon() -> None:
    world = World(2, rules=Rules(policy=PolicyRules(min_run=0.0)))
    first, second = (world.submit(qos="low", grace=60.0) for _ in range(2))
    goes_on(world, first, second)
    reserve(world, devices="1", start_in=120.0, users="bob")
    high = world.submit(qos="high", time_limit=90.0)
    assert world.asked_to_stop() == [first], "the second one has less to lose, but on a device that is reserved soon"
    world.exits(first, code=85, saved_step=1)
    assert world.where(high) == (0,)
