"""Elastic jobs, rule by rule: who grows onto what, who takes over from whom, and who is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World, gpu
from elastic_worlds import HOUR, MINUTE, a_world, goes_on, put_speeds, resized, wide
from reserving import reserve

from gpusched.model.job import Speed
from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.preempt import plan_preemption


def two_at_once(world: World, *wanted: dict[str, object]) -> list[int]:
    """Jobs submitted in one batch."""
    return [reply.job_ids[0] for reply in world.handle(*(world.submission(**each) for each in wanted))]


def test_of_two_that_start_at_once_the_higher_level_gets_what_is_left():
    world = a_world(4)
    elastic = {"gpus": 1, "gpus_max": 4}
    low, normal = two_at_once(world, {**elastic, "qos": "low"}, elastic)
    assert (len(world.where(low)), len(world.where(normal))) == (1, 3)


def test_of_two_that_start_at_once_each_takes_what_the_other_cannot_use():
    world = World(gpu(0, "A100"), gpu(1, "H100"), gpu(2, "H100"), gpu(3, "A100"))
    either, special = two_at_once(world, {"gpus": 1, "gpus_max": 2}, {"gpus": 1, "gpus_max": 2, "gpu_type": "h100"})
    assert (world.where(either), world.where(special)) == ((0, 3), (1, 2))


def test_it_takes_what_one_at_its_limit_waits_for():
    world = World(2, rules=Rules(limits=LimitRules(user={"bob": Limits(max_running=1)})))
    world.submit(by="bob", gpus=0)
    assert world.where(world.submit(by="bob")) == ()
    assert world.where(world.submit(gpus=1, gpus_max=2)) == (0, 1)


def test_in_a_reservation_it_takes_what_others_wait_for_in_vain():
    world = World(3)
    world.started(world.submit(by="bob"))
    reserve(world, devices="1,2")
    assert world.where(world.submit(by="bob")) == ()
    assert world.where(world.submit(gpus=1, gpus_max=2, reservation="paper")) == (1, 2)


def test_it_keeps_its_own_device_when_it_grows_though_another_waits_for_such_a_one():
    world = World(gpu(0, "H100"), gpu(1, "H100"), gpu(2, "A100"))
    world.started(world.submit(gpu_type="h100"))
    other = world.submit(gpu_type="a100")
    job = wide(world, most=2)
    world.submit(gpus=2, gpu_type="h100")
    world.passes(HOUR)
    world.exits(other)
    resized(world, job)
    assert world.where(job) == (1, 2)


@pytest.mark.parametrize(("speed", "state"), [(1.04, JobState.RUNNING), (1.3, JobState.STOPPING)])
def test_it_is_not_moved_for_hardly_more_speed_however_long_it_runs(speed: float, state: JobState):
    world = a_world(2)
    other = world.submit()
    world.started(other)
    job = wide(world, most=2)
    put_speeds(world, job, Speed(1, 1.0), Speed(2, speed))
    world.passes(100 * HOUR)
    world.exits(other)
    assert world.states(job) == [state]


def test_having_left_with_85_it_can_be_moved_again_before_it_watches():
    world = a_world(2)
    job = wide(world, most=2)
    world.passes(HOUR)
    other = world.submit()
    world.exits(job, code=85)
    world.started(job, other)
    world.passes(HOUR)
    world.exits(other)
    assert world.states(job) == [JobState.STOPPING]


def one_with_three_and_one_with_one(world: World, **second: object) -> list[int]:
    """Two elastic jobs for which it would pay to share four devices by halves."""
    first = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=1, gpus_max=4, **second)
    world.passes(MINUTE)
    resized(world, first)
    goes_on(world, first, other)
    assert (len(world.where(first)), len(world.where(other))) == (3, 1)
    return [first, other]


def test_alike_and_undisturbed_they_share_by_halves():
    world = a_world(4)
    jobs = one_with_three_and_one_with_one(world)
    world.passes(HOUR)
    assert world.states(*jobs) == [JobState.STOPPING] * 2


def test_nothing_is_taken_over_from_another_level():
    world = a_world(4)
    jobs = one_with_three_and_one_with_one(world, qos="high")
    world.passes(HOUR)
    assert world.states(*jobs) == [JobState.RUNNING] * 2


def test_nothing_is_taken_over_while_others_wait_for_devices():
    world = a_world(4)
    jobs = one_with_three_and_one_with_one(world)
    world.submit(gpus=4)
    world.passes(HOUR)
    assert world.states(*jobs) == [JobState.RUNNING] * 2


def test_nothing_is_taken_over_past_a_limit():
    policy, limits = PolicyRules(resize_interval=5 * MINUTE), LimitRules(user={"bob": Limits(max_devices=1)})
    world = World(4, rules=replace(Rules.default(), policy=policy, limits=limits))
    jobs = one_with_three_and_one_with_one(world, by="bob")
    world.passes(HOUR)
    assert world.states(*jobs) == [JobState.RUNNING] * 2


@pytest.mark.parametrize("qos", ["low", "normal", "high"])
def test_whatever_its_level_it_gives_an_equal_what_it_was_lent(qos: str):
    world = a_world(2)
    job = wide(world, most=2, qos=qos)
    world.passes(HOUR)
    other = world.submit(qos=qos)
    resized(world, job)
    assert (len(world.where(job)), len(world.where(other))) == (1, 1)


def test_who_has_to_leave_as_a_whole_is_not_asked_for_a_part_besides():
    world = a_world(3)
    job = wide(world, most=3, qos="low")
    world.passes(HOUR)
    high = world.submit(qos="high", gpus=3, hold=True)
    plan = plan_preemption(world.engine.view, world.job(high), world.now)
    assert plan is not None
    assert ([attempt.job_id for attempt in plan.victims], plan.gives) == ([job], ())
