"""What can go wrong while an elastic job is moved: cancels, kills, failing devices, and a daemon that dies."""

import pytest
from elastic_worlds import HOUR, a_world, goes_on, resized, wide

from gpusched.model.state import JobState, Outcome, OutcomeKind, StopKind


def test_the_other_is_cancelled_while_it_saves_and_it_has_its_devices_back():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.cancel(other)
    resized(world, job)
    assert len(world.where(job)) == 4 and world.launched().count(job) == 2


def test_cancelled_while_it_saves_it_leaves_everything():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.cancel(job)
    world.exits(job, code=1)
    assert world.states(job) == [JobState.CANCELLED] and len(world.where(other)) == 2
    assert len(world.where(world.submit(gpus=2))) == 2


def test_a_job_that_does_not_leave_in_time_is_killed_and_goes_on_from_its_checkpoint():
    world = a_world(4)
    job = wide(world)
    world.saves(job, 7)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.passes(61.0)
    assert world.killed() == [job]
    world.exits(job, code=None, signal=9)
    assert len(world.where(job)) == 2 and len(world.where(other)) == 2
    assert world.job(job).saved.step == 7


def test_it_completes_while_it_is_asked_to_save():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.exits(job)
    assert world.states(job) == [JobState.COMPLETED] and len(world.where(other)) == 2
    assert len(world.where(world.submit(gpus=2))) == 2


def test_a_device_that_it_keeps_fails_while_it_saves():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    world.fails(0)
    world.exits(job, code=85, saved_step=1, clear=[1, 2, 3])
    assert len(world.where(other)) == 2
    assert world.where(job) == (1,)  # promised were 0 and 1


@pytest.mark.parametrize("point", ["asked", "saved", "left", "started"])
def test_the_daemon_may_die_at_each_point_of_a_move(point):
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    if point == "asked":
        world.crash()
    world.saves(job, 9)
    if point == "saved":
        world.crash()
    process = world.processes[world.key(job)]
    if point == "left":
        exited = world.end(world.key(job), Outcome(OutcomeKind.EXITED, code=85))
        assert process.outcome is not None and exited.clear
        world.crash()
    else:
        world.exits(job, code=85)
    if point == "started":
        world.crash()
    assert (len(world.where(job)), len(world.where(other))) == (2, 2)
    assert not {*world.where(job)} & {*world.where(other)}
    world.started(job, other)
    assert world.states(job, other) == [JobState.RUNNING, JobState.RUNNING]


def test_a_move_does_not_begin_the_time_limit_anew():
    world = a_world(4)
    job = wide(world, time_limit=HOUR)
    world.passes(HOUR / 2)
    world.submit(gpus=2)
    resized(world, job)
    goes_on(world, job)
    assert world.job(job).limit_left == HOUR / 2
    world.passes(HOUR / 2 - 1)
    assert world.states(job) == [JobState.RUNNING]
    world.passes(1.0)
    assert world.job(job).stop.kind is StopKind.TIME_LIMIT
    world.exits(job, code=85)
    world.requeue(job)
    assert world.job(job).limit_left == HOUR  # as for any job that begins again
