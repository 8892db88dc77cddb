"""fit-first, rule by rule: whose being passed is counted, and what is kept for whom at the bypass limit."""

from __future__ import annotations

from typing import Any

from builders import GIB, World, gpu
from reserving import HOUR, reserve

from gpusched.model.limits import LimitRules
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Qos, Rules


def an_idle_world(devices: int, **rules: Any) -> World:
    return World(devices, rules=Rules(policy=PolicyRules(PolicyName.FIT_FIRST), **rules))


def a_world(devices: int, bypass_limit: int = 100, cpu_jobs: int = 8) -> World:
    """One device is in use for long."""
    world = an_idle_world(devices, bypass_limit=bypass_limit, cpu_jobs=cpu_jobs)
    world.started(world.submit())
    return world


def test_only_the_first_one_that_waits_is_counted_as_passed():
    world = a_world(2)
    first, second = world.submit(gpus=2), world.submit(gpus=2, gpu_type="4090")
    assert world.where(world.submit()) == (1,)
    assert (world.job(first).bypassed, world.job(second).bypassed) == (1, 0)


def test_a_plan_to_preempt_counts_as_passing_too():
    world = a_world(2)
    low = world.submit(qos="low")
    world.started(low)
    gang = world.submit(gpus=2)
    world.submit()
    assert world.asked_to_stop() == [low]
    assert world.job(gang).bypassed == 1


def test_a_job_without_devices_is_not_the_one_that_is_passed():
    world = a_world(2, cpu_jobs=1)
    world.submit(gpus=0)
    waits, gang = world.submit(gpus=0), world.submit(gpus=2)
    assert world.where(world.submit()) == (1,)
    assert (world.job(waits).bypassed, world.job(gang).bypassed) == (0, 1)


def test_what_is_reserved_for_others_is_not_kept_for_the_first_one():
    world = a_world(2, bypass_limit=0)
    reserve(world, devices="1", users="bob")
    waits, own = world.submit(), world.submit(by="bob", reservation="paper", nice=5000)
    assert (world.where(waits), world.where(own)) == ((), (1,))


def test_nothing_is_kept_for_one_that_only_a_reservation_keeps_from_devices():
    world = a_world(3, bypass_limit=0)
    reserve(world, devices="1", users="bob")
    gang, small = world.submit(gpus=3), world.submit()
    assert (world.where(gang), world.where(small)) == ((), (2,))


def test_who_is_over_before_a_reservation_begins_does_not_take_what_is_kept_for_the_first_one():
    world = a_world(2, bypass_limit=0)
    gang = world.submit(gpus=2)
    reserve(world, devices="1", start_in=2 * HOUR, users="bob")
    long, short = world.submit(time_limit=3 * HOUR), world.submit(time_limit=HOUR)
    assert [world.where(job) for job in (gang, long, short)] == [(), (), ()]


def a_gang_and_two_before_a_reservation(bypass_limit: int, low: bool) -> tuple[World, int, int, int]:
    """A gang waits for both devices; then come a job that is too long for device 1, and a short one."""
    world = a_world(2, bypass_limit)
    if low:
        world.started(world.submit(qos="low"))
    gang = world.submit(gpus=2)
    reserve(world, devices="1", start_in=2 * HOUR, users="bob")
    return world, gang, world.submit(time_limit=3 * HOUR), world.submit(time_limit=HOUR)


def test_nor_does_it_ask_anybody_to_leave_what_is_kept():
    world, *_ = a_gang_and_two_before_a_reservation(bypass_limit=0, low=True)
    assert world.asked_to_stop() == []


def test_who_is_over_before_a_reservation_begins_is_counted_too():
    world, gang, long, short = a_gang_and_two_before_a_reservation(bypass_limit=1, low=False)
    assert (world.where(long), world.where(short), world.job(gang).bypassed) == ((), (1,), 1)


# ---- one that finds no place says nothing about those who need less, or may have more --------------------------


def test_one_that_needs_less_memory_shares_a_device_where_another_finds_no_room():
    world = an_idle_world(1)
    world.started(world.submit(shared=True, gpu_mem_mib=12 * GIB))
    large, small = (world.submit(shared=True, gpu_mem_mib=gib * GIB) for gib in (20, 4))
    assert (world.where(large), world.where(small)) == ((), (0,))


def test_a_level_that_may_preempt_does_so_behind_a_higher_one_that_may_not():
    levels = {"low": Qos("low", 0), "normal": Qos("normal", 50, ("low",)), "polite": Qos("polite", 100)}
    world = an_idle_world(1, qos=levels)
    low = world.submit(qos="low")
    world.started(low)
    world.submit(qos="polite")
    assert world.asked_to_stop() == []
    world.submit()
    assert world.asked_to_stop() == [low]


def test_others_ask_a_lower_level_to_leave_where_one_that_gave_its_device_back_does_not():
    world = an_idle_world(1)
    gave, low = world.submit(), world.submit(qos="low")
    world.preempt(gave)
    world.exits(gave, code=85)
    assert (world.running(), world.asked_to_stop()) == ({low}, [gave])
    world.submit()
    assert world.asked_to_stop() == [low]


def test_who_is_within_its_quota_takes_back_what_one_without_a_quota_may_not():
    world = an_idle_world(2, limits=LimitRules(quota={"vision": 1.0, "bob": 1.0}))
    vision = [world.submit(account="vision") for _ in range(2)]
    world.started(*vision)
    world.submit()
    assert world.asked_to_stop() == []
    world.submit(by="bob", nice=5000)
    assert world.asked_to_stop() == [vision[1]]


def test_one_that_waits_for_the_devices_of_its_reservation_keeps_nobody_from_the_others():
    world = a_world(3)
    reserve(world, devices="1", users="bob")
    own = [world.submit(by="bob", reservation="paper") for _ in range(2)]
    other = world.submit()
    assert ([world.where(job) for job in own], world.where(other)) == ([(1,), ()], (2,))


def test_who_starts_on_devices_of_another_kind_goes_past_nobody():
    world = World(gpu(0, "H100"), gpu(1, "A100"), rules=Rules(policy=PolicyRules(PolicyName.FIT_FIRST)))
    world.started(world.submit(gpu_type="h100"))
    waits, other = world.submit(gpu_type="h100"), world.submit(gpu_type="a100")
    assert (world.where(other), world.job(waits).bypassed) == ((1,), 0)
