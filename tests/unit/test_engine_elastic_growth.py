"""Elastic jobs grow where it pays, share with one another, and do not flap."""

from dataclasses import replace

import pytest
from builders import World
from elastic_worlds import HOUR, MINUTE, a_world, goes_on, resized, wide

from gpusched.model.job import Speed
from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyName
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.grow import seconds_left


def test_it_grows_again_when_the_other_has_ended():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    resized(world, job)
    world.started(other)
    goes_on(world, job)
    world.passes(10 * MINUTE)
    assert len(world.where(job)) == 2
    world.exits(other)
    assert world.job(job).stop.phrase() == "grows from 2 to 4 devices"
    resized(world, job)
    assert world.where(job) == (0, 1, 2, 3)
    assert any("expected to be 1.43 times as quick" in line for line in world.story(job))


def test_it_does_not_flap():
    world = a_world(2)
    job = wide(world, most=2)
    world.passes(HOUR)
    for _ in range(5):
        other = world.submit(gpus=1)
        if world.job(job).state is JobState.STOPPING:
            resized(world, job)
            goes_on(world, job)
        world.started(other)
        world.passes(30.0)
        world.exits(other)
        world.passes(30.0)
    assert world.job(job).resizes == 1  # one move in the five minutes, not ten


def test_it_grows_only_after_the_resize_interval():
    world = a_world(2)
    other = world.submit(gpus=1)
    world.started(other)
    job = wide(world, most=2)
    world.passes(2 * MINUTE)
    world.exits(other)
    assert world.states(job) == [JobState.RUNNING]
    world.passes(3 * MINUTE)
    assert world.states(job) == [JobState.STOPPING]


def test_it_does_not_grow_near_its_end():
    world = a_world(2)
    other = world.submit(gpus=1)
    world.started(other)
    job = wide(world, most=2)
    world.progresses(job, 0, total=1000)
    world.passes(HOUR)
    world.progresses(job, 960, total=1000)  # 150 s to go: a move costs 60 s and would save 56 s
    world.exits(other)
    world.passes(10.0)
    assert world.states(job) == [JobState.RUNNING]
    assert world.job(job).speeds == (Speed(1, pytest.approx(960 / HOUR)),)


def test_it_grows_where_much_is_left():
    world = a_world(2)
    other = world.submit(gpus=1)
    world.started(other)
    job = wide(world, most=2)
    world.progresses(job, 0, total=10_000)
    world.passes(HOUR)
    world.progresses(job, 3600, total=10_000)
    world.exits(other)
    assert world.states(job) == [JobState.STOPPING]
    assert any("1 steps/s on 1, expected 1.6 on 2; about 1:46:40 to go" in line for line in world.story(job))


def test_what_is_left_is_known_from_what_was_measured_on_another_number():
    world = a_world(4)
    job = wide(world)
    world.progresses(job, 0, total=100_000)
    world.passes(HOUR)
    world.progresses(job, 7200, total=100_000)
    other = world.submit(gpus=2)
    resized(world, job)
    world.started(other)
    goes_on(world, job)
    world.progresses(job, 7200, total=100_000)  # one report tells no speed yet
    world.passes(5 * MINUTE)
    world.exits(other)
    left = (100_000 - 7200) / (2 / 1.75)  # by one measurement, half as many devices take 1.75 times as long
    assert seconds_left(world.engine.view, world.job(job), world.now) == pytest.approx(left)
    assert world.states(job) == [JobState.STOPPING]


def test_it_never_grows_to_a_number_that_was_measured_to_be_no_faster():
    world = a_world(2)
    job = wide(world, most=2)
    world.progresses(job, 0)
    world.passes(HOUR)
    world.progresses(job, 3600)
    other = world.submit(gpus=1)
    resized(world, job)
    world.started(other)
    goes_on(world, job)
    world.progresses(job, 3600)
    world.passes(HOUR)
    world.progresses(job, 7300)
    world.exits(other)
    world.passes(HOUR)
    assert world.states(job) == [JobState.RUNNING] and len(world.where(job)) == 1
    assert [speed.gpus for speed in world.job(job).speeds] == [1, 2]


def test_it_grows_only_if_it_has_shown_that_it_can_save():
    world = a_world(2)
    other = world.submit(gpus=1)
    job = world.submit(gpus=1, gpus_max=2)
    world.started(other, job)
    world.passes(HOUR)
    world.exits(other)
    world.passes(HOUR)
    assert world.states(job) == [JobState.RUNNING]
    world.saves(job, 5)
    world.passes(5 * MINUTE)
    assert world.states(job) == [JobState.STOPPING]


def test_nobody_grows_onto_devices_that_a_waiting_job_could_use():
    world = a_world(4)
    rigid = world.submit(gpus=2)
    world.started(rigid)
    job = wide(world, most=4)
    other = world.submit(gpus=1)
    assert world.where(job) == (2, 3)
    world.passes(HOUR)
    resized(world, job)
    world.started(other)
    goes_on(world, job)
    big = world.submit(gpus=4)
    world.passes(HOUR)
    world.exits(other)
    world.passes(HOUR)
    assert world.states(job, big) == [JobState.RUNNING, JobState.PENDING] and len(world.where(job)) == 1


def test_it_grows_no_further_than_its_limits_allow():
    limits = LimitRules(user={"ann": Limits(max_devices=3)})
    world = World(4, rules=replace(Rules.default(), limits=limits))
    one = world.submit(gpus=1, gpus_max=4)
    assert len(world.where(one)) == 3
    other = world.submit(gpus=1, by="bob")
    world.started(other)
    goes_on(world, one)
    world.passes(HOUR)
    world.exits(other)
    world.passes(HOUR)
    assert len(world.where(one)) == 3 and world.states(one) == [JobState.RUNNING]


def test_two_jobs_of_one_user_do_not_grow_past_a_limit_together():
    limits = LimitRules(user={"ann": Limits(max_devices=3)})
    world = World(4, rules=replace(Rules.default(), limits=limits))
    rigid = world.submit(gpus=2, by="bob")
    world.started(rigid)
    replies = world.handle(world.submission(gpus=1, gpus_max=4), world.submission(gpus=1, gpus_max=4))
    one, two = (reply.job_ids[0] for reply in replies)
    goes_on(world, one, two)
    world.passes(HOUR)
    world.exits(rigid)
    for job in [j for j in (one, two) if world.job(j).state is JobState.STOPPING]:
        resized(world, job)
    assert len(world.where(one)) + len(world.where(two)) == 3


def test_a_job_with_much_more_than_another_shares_with_it():
    world = a_world(4)
    first = wide(world)
    world.passes(HOUR)
    second = world.submit(gpus=1, gpus_max=4)
    world.passes(40)  # to save and leave
    resized(world, first)
    world.started(first)
    goes_on(world, second)
    world.passes(20)  # to load: moving it costs a minute, as is assumed of the other
    world.watches(first)
    assert (len(world.where(first)), len(world.where(second))) == (3, 1)
    world.passes(9 * MINUTE - 20)
    assert world.states(first, second) == [JobState.RUNNING, JobState.RUNNING]
    world.passes(MINUTE)  # as long again as it has run: now that is worth both moves
    assert world.states(first, second) == [JobState.STOPPING, JobState.STOPPING]
    assert world.job(first).stop.phrase() == f"gives 1 of its 3 devices to job {second}"
    resized(world, second)
    assert world.where(second) == ()  # its new device is not free yet
    resized(world, first)
    assert (len(world.where(first)), len(world.where(second))) == (2, 2)
    assert {*world.where(first), *world.where(second)} == {0, 1, 2, 3}


def test_device_seconds_are_counted_by_what_it_really_held():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    world.submit(gpus=2)
    resized(world, job)
    world.started(job)
    world.passes(100.0)
    world.exits(job)
    assert world.job(job).gpu_seconds == pytest.approx(4 * HOUR + 2 * 100.0)


@pytest.mark.parametrize("name", list(PolicyName))
def test_every_policy_starts_shrinks_and_grows_it(name):
    world = a_world(4, name=name, min_run=0.0)
    job = wide(world)
    assert len(world.where(job)) == 4
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.passes(2 * MINUTE)
    resized(world, job)
    assert len(world.where(other)) == 2 and len(world.where(job)) == 2
    world.started(other)
    goes_on(world, job)
    world.exits(other)
    world.passes(HOUR)
    resized(world, job)
    assert len(world.where(job)) == 4


def test_a_step_count_that_begins_anew_is_measured_anew():
    world = a_world(2)
    job = wide(world, most=2)
    world.progresses(job, 1_000_000)
    world.passes(10.0)
    world.progresses(job, 0)  # it has begun again by itself
    world.passes(100.0)
    world.progresses(job, 200)
    assert world.job(job).speeds == (Speed(2, pytest.approx(2.0)),)


def test_what_a_job_without_a_range_tells_is_not_kept():
    world = a_world(2)
    job = world.submit()
    world.started(job)
    for _ in range(2):
        world.progresses(job, world.now.boot)
        world.passes(100.0)
    assert world.job(job).speeds == () and world.engine.view.live[job].pace is None
