"""Reservations and those who wait: who goes past whom, under each policy, and what is promised for the time after."""

from __future__ import annotations

import pytest
from builders import World
from reserving import HOUR, reserve

from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.reservation import Repeat
from gpusched.model.rules import Rules

EVERY = pytest.mark.parametrize("policy", PolicyName)


def a_world(devices: int, policy: PolicyName = PolicyName.BACKFILL) -> World:
    return World(devices, rules=Rules(policy=PolicyRules(name=policy)))


@EVERY
def test_a_shorter_job_of_the_same_user_goes_past_one_that_is_too_long(policy: PolicyName) -> None:
    world = a_world(1, policy)
    reserve(world, devices="0", start_in=2 * HOUR, users="bob")
    long = world.submit(time_limit=3 * HOUR)
    short = world.submit(time_limit=HOUR)
    assert (world.where(long), world.where(short)) == ((), (0,))
    assert world.why(long).word == "Reservation"


@EVERY
def test_of_several_that_are_short_enough_all_start_at_once(policy: PolicyName) -> None:
    world = a_world(3, policy)
    reserve(world, devices="0,1,2", start_in=2 * HOUR, users="bob")
    world.submit(time_limit=3 * HOUR)
    shorter = [world.submit(time_limit=HOUR, hold=True) for _ in range(3)]
    world.release(*shorter)
    assert sorted(world.where(job) for job in shorter) == [(0,), (1,), (2,)]


@EVERY
def test_the_jobs_of_a_reservation_wait_behind_nobody_who_may_not_have_its_devices(policy: PolicyName) -> None:
    world = a_world(2, policy)
    reserve(world, devices="0")
    world.submit("bob", time_limit=5 * HOUR)  # on the other device
    gang, single = world.submit("bob", gpus=2, time_limit=HOUR), world.submit("bob", time_limit=HOUR)
    own = world.submit(reservation="paper", time_limit=20 * HOUR)
    assert (world.where(own), world.where(gang), world.where(single)) == ((0,), (), ())
    assert world.why(gang).word == "Reservation"


@EVERY
def test_who_could_only_run_on_reserved_devices_holds_nobody_up_for_longer_than_they_are(policy: PolicyName) -> None:
    world = a_world(2, policy)
    reserve(world, devices="0", users="bob", duration=HOUR)
    gang = world.submit(gpus=2, time_limit=HOUR)
    short = world.submit(time_limit=HOUR / 2)
    assert world.where(short) == (1,)
    world.started(short)
    world.exits(short)
    world.passes(HOUR)
    assert world.where(gang) == (0, 1)


def test_backfill_keeps_the_devices_for_the_first_one_from_the_end_of_the_reservation_on() -> None:
    world = a_world(2)
    reserve(world, devices="0", users="bob", duration=HOUR)
    gang = world.submit(gpus=2, time_limit=HOUR)
    too_long, unknown = world.submit(time_limit=2 * HOUR), world.submit()
    assert world.why(too_long).word == "Priority"  # the other device is free, and kept
    in_time = world.submit(time_limit=HOUR)
    assert [world.where(job) for job in (gang, too_long, unknown, in_time)] == [(), (), (), (1,)]
    world.started(in_time)
    world.passes(HOUR - 60)
    world.exits(in_time)
    world.passes(60)
    assert world.where(gang) == (0, 1)


def test_backfill_lets_who_leaves_for_the_reservation_run_until_then() -> None:
    world = a_world(1)
    reserve(world, devices="0", users="bob", start_in=2 * HOUR, duration=HOUR)
    first = world.submit(time_limit=3 * HOUR)  # starts when the reservation is over
    unknown = world.submit()  # is asked to leave when it begins: the first one loses nothing
    assert (world.where(first), world.where(unknown)) == ((), (0,))


@EVERY
def test_the_elements_of_an_array_start_when_their_reservation_begins(policy: PolicyName) -> None:
    world = a_world(2, policy)
    reserve(world, devices="0,1", start_in=HOUR)
    world.submitted(array="0-9", reservation="paper")
    assert not world.running()
    assert world.why(1).word == "Reservation"
    world.passes(HOUR)
    assert len(world.running()) == 2


@EVERY
def test_the_rest_of_an_array_is_ordinary_when_its_reservation_is_over(policy: PolicyName) -> None:
    world = a_world(2, policy)
    reserve(world, devices="0", duration=HOUR)
    world.submitted(array="0-9", reservation="paper")
    assert len(world.running()) == 1
    world.passes(HOUR)
    assert len(world.running()) == 2
    assert {job.spec.request.reservation for job in world.engine.state.jobs.values()} == {""}


def test_preemption_of_equals_goes_on_beside_a_reservation() -> None:
    world = a_world(2, PolicyName.LAS)
    reserve(world, devices="0", users="bob", duration=100 * HOUR)
    old = world.submit()
    world.started(old)
    world.watches(old)
    world.passes(12 * HOUR)
    new = world.submit()
    world.passes(HOUR)
    assert old in world.asked_to_stop()
    world.exits(old, code=85, saved_step=1)
    assert world.where(new) == (1,)


@EVERY
def test_a_shorter_job_of_another_user_goes_past_one_that_is_too_long(policy: PolicyName) -> None:
    world = a_world(1, policy)
    reserve(world, devices="0", start_in=2 * HOUR, users="root")
    long, short = world.submit(time_limit=3 * HOUR), world.submit("bob", time_limit=HOUR)
    assert (world.where(long), world.where(short)) == ((), (0,))


NOT_PREEMPTIVE = pytest.mark.parametrize("policy", [name for name in PolicyName if not name.preemptive])


@NOT_PREEMPTIVE
def test_one_that_is_short_enough_asks_a_lower_level_to_leave_where_one_before_it_may_not(policy: PolicyName) -> None:
    world = a_world(1, policy)
    low = world.submit(qos="low")
    world.started(low)
    reserve(world, devices="0", start_in=2 * HOUR, users="bob")
    world.submit(time_limit=3 * HOUR)
    assert world.asked_to_stop() == []
    world.submit(time_limit=HOUR)
    assert world.asked_to_stop() == [low]


@NOT_PREEMPTIVE
def test_of_several_that_are_shorter_those_that_find_no_place_do_not_stand_in_the_way(policy: PolicyName) -> None:
    world = a_world(2, policy)
    ends, stays = world.submit(time_limit=HOUR), world.submit(time_limit=HOUR)
    world.started(ends, stays)
    reserve(world, "soon", devices="0", start_in=2 * HOUR, users="bob")
    reserve(world, "later", devices="1", start_in=4 * HOUR, users="bob")
    jobs = [world.submit(time_limit=hours * HOUR) for hours in (5, 3, 1)]
    world.exits(ends)
    assert [world.where(job) for job in jobs] == [(), (), (0,)]


@pytest.mark.parametrize("policy", [PolicyName.BACKFILL, PolicyName.FIT_FIRST])
def test_who_is_kept_from_other_devices_than_the_one_before_it_starts_on_those(policy: PolicyName) -> None:
    world = a_world(2, policy)
    world.started(world.submit(time_limit=HOUR))
    reserve(world, "daily", devices="0", start_in=2 * HOUR, duration=HOUR, users="bob", repeat=Repeat.DAILY)
    reserve(world, "once", devices="1", start_in=10 * HOUR, users="bob")
    endless = world.submit(time_limit=30 * HOUR)  # longer than every gap of device 0, where it may start therefore
    short = world.submit(time_limit=5 * HOUR)
    assert (world.where(endless), world.where(short)) == ((), (1,))


@NOT_PREEMPTIVE
def test_who_is_short_enough_obeys_limits_too(policy: PolicyName) -> None:
    limits = LimitRules(user={"ann": Limits(max_devices=1)})
    world = World(3, rules=Rules(policy=PolicyRules(name=policy), limits=limits))
    reserve(world, devices="0,1,2", start_in=2 * HOUR, users="bob")
    jobs = [world.submit(time_limit=hours * HOUR, hold=True) for hours in (3, 1, 1)]
    world.release(*jobs)
    assert world.running() == {jobs[1]}
