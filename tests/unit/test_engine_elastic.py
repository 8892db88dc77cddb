"""Elastic jobs in the engine: they start on what is there, and give back what others need."""

import pytest
from elastic_worlds import HOUR, MINUTE, a_world, goes_on, put_speeds, resized, wide

from gpusched.model.errors import UsageError
from gpusched.model.job import Speed
from gpusched.model.policy import PolicyName
from gpusched.model.state import JobState, StopKind
from gpusched.policy.kept import keep_for

# ---- the start -----------------------------------------------------------------------------------------------------


def test_it_starts_on_all_that_is_free_up_to_its_most():
    world = a_world(4)
    assert world.where(world.submit(gpus=1, gpus_max=3)) == (0, 1, 2)
    assert world.where(world.submit(gpus=1, gpus_max=8 // 2)) == (3,)


def test_it_is_launched_once_and_on_all_its_devices():
    world = a_world(4)
    job = world.submit(gpus=2, gpus_max=4)
    assert world.launched() == [job]
    assert {share.uuid for share in world.processes[world.key(job)].shares} == {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}
    assert world.story(job)[-1] == "takes 4 at once, devices 0,1,2,3: nobody else could use them now"


def test_it_waits_until_its_least_number_is_free():
    world = a_world(4)
    other = world.submit(gpus=3)
    job = world.submit(gpus=2, gpus_max=4)
    assert world.where(job) == ()
    assert "needs 2 to 4 devices, 1 of 4 free" in world.why(job).text
    world.started(other)
    world.exits(other)
    assert world.where(job) == (0, 1, 2, 3)


def test_it_leaves_to_those_behind_it_what_they_can_use():
    world = a_world(4)
    first = world.submit(gpus=4)
    job, small = world.submit(gpus=1, gpus_max=4), world.submit(gpus=1)
    world.started(first)
    world.exits(first)
    assert len(world.where(small)) == 1
    assert len(world.where(job)) == 3  # what nobody could use


def test_it_leaves_free_what_a_larger_job_waits_for():
    world = a_world(4, name=PolicyName.FIT_FIRST)
    long = world.submit(gpus=1)
    world.started(long)
    waiting = world.submit(gpus=4)
    job = world.submit(gpus=1, gpus_max=4)
    assert len(world.where(job)) == 1 and world.states(waiting) == [JobState.PENDING]


def test_of_several_numbers_it_takes_the_largest_that_fits():
    world = a_world(4)
    world.submit(gpus=1)
    job = world.submit(gpus=1, gpus_max=4, gpu_counts=(1, 2, 4))
    assert len(world.where(job)) == 2


def test_two_that_start_together_share_by_what_they_gain():
    world = a_world(4)
    first = world.submit(gpus=4)
    one, two = world.submit(gpus=1, gpus_max=4), world.submit(gpus=1, gpus_max=4)
    world.started(first)
    world.exits(first)
    assert (len(world.where(one)), len(world.where(two))) == (2, 2)


def test_it_may_not_take_more_than_there_are():
    world = a_world(4)
    with pytest.raises(UsageError, match="no way to give 8 devices here") as error:
        world.submit(gpus=2, gpus_max=8)
    assert "ask for at most 4" in error.value.hint
    with pytest.raises(UsageError, match="cannot grow"):
        world.submit(gpus=1, gpus_max=2, shared=True, gpu_mem_mib=1024)


# ---- giving back ---------------------------------------------------------------------------------------------------


def test_it_gives_back_what_a_waiting_job_needs_and_goes_on_at_once_with_the_rest():
    world = a_world(4)
    job = wide(world)
    world.passes(5 * MINUTE)
    other = world.submit(gpus=2, by="bob")
    stop = world.job(job).stop
    assert stop is not None and stop.kind is StopKind.RESIZE
    assert stop.phrase() == f"gives 2 of its 4 devices to job {other}"
    assert world.why(other).word == "Preempting"
    assert f"job {job} gives 2 of its 4 devices to it" in world.why(other).text
    resized(world, job)
    assert world.where(other) == (2, 3) and world.where(job) == (0, 1)
    assert world.job(job).resizes == 1 and world.job(job).preemptions == 0
    assert world.job(job).attempt == 2


def test_it_keeps_its_least_number():
    world = a_world(4)
    job = wide(world, least=3)
    world.passes(HOUR)
    world.submit(gpus=2)
    assert world.states(job) == [JobState.RUNNING]
    other = world.submit(gpus=1)
    resized(world, job)
    assert len(world.where(job)) == 3 and len(world.where(other)) == 1


def test_of_several_numbers_it_goes_down_to_one_that_it_can_run_on():
    world = a_world(4)
    job = wide(world, gpu_counts=(1, 2, 4))
    world.passes(HOUR)
    world.submit(gpus=1)
    resized(world, job)
    assert len(world.where(job)) == 2  # 3 is no number for it; one device stays free


def test_an_equal_waits_until_it_has_run_for_the_resize_interval():
    world = a_world(4)
    job = wide(world)
    world.passes(2 * MINUTE)
    other = world.submit(gpus=1)
    assert world.states(job, other) == [JobState.RUNNING, JobState.PENDING]
    world.passes(3 * MINUTE)
    assert world.states(job) == [JobState.STOPPING]


def test_a_more_important_job_does_not_wait():
    world = a_world(4)
    job = wide(world, qos="low")
    other = world.submit(gpus=1, qos="high")
    resized(world, job)
    assert len(world.where(other)) == 1 and len(world.where(job)) == 3


def test_a_less_important_job_gets_nothing():
    world = a_world(4)
    job = wide(world, qos="normal")
    world.passes(HOUR)
    world.submit(gpus=1, qos="low")
    assert world.states(job) == [JobState.RUNNING]


def test_no_whole_job_leaves_where_elastic_ones_can_spare_enough():
    world = a_world(4)
    job = wide(world, most=3, qos="low")
    rigid = world.submit(gpus=1, qos="low")
    world.started(rigid)
    high = world.submit(gpus=2, qos="high")
    assert world.states(rigid, job) == [JobState.RUNNING, JobState.STOPPING]
    resized(world, job)
    assert len(world.where(high)) == 2 and len(world.where(job)) == 1


def test_where_that_is_not_enough_a_whole_job_leaves_too():
    world = a_world(4)
    job = wide(world, least=2, most=3, qos="low")
    rigid = world.submit(gpus=1, qos="low")
    world.started(rigid)
    high = world.submit(gpus=2, qos="high")
    assert world.states(rigid, job) == [JobState.STOPPING, JobState.STOPPING]
    assert world.job(rigid).stop.kind is StopKind.PREEMPT and world.job(job).stop.kind is StopKind.RESIZE
    world.exits(rigid, code=85)
    resized(world, job)
    assert len(world.where(high)) == 2 and len(world.where(job)) == 2
    assert world.states(rigid) == [JobState.PENDING]


def test_the_job_that_loses_least_by_its_measured_speed_gives_first():
    world = a_world(4)
    first = world.submit(gpus=4)
    scales, flat = world.submit(gpus=1, gpus_max=2), world.submit(gpus=1, gpus_max=2)
    world.started(first)
    world.exits(first)
    goes_on(world, scales, flat)
    put_speeds(world, scales, Speed(1, 1.0), Speed(2, 2.0))
    put_speeds(world, flat, Speed(1, 1.0), Speed(2, 1.1))
    world.passes(5 * MINUTE)
    world.submit(gpus=1)
    assert world.states(scales, flat) == [JobState.RUNNING, JobState.STOPPING]


def test_backfill_counts_on_what_it_will_give_back():
    world = a_world(4)
    rigid = world.submit(gpus=1, time_limit=HOUR)
    world.started(rigid)
    wide(world, most=3)
    big = world.submit(gpus=3)
    kept = keep_for(world.engine.view, world.now, world.job(big))
    assert kept.until == world.now.boot + HOUR and len(kept.devices) == 3
    world.passes(HOUR)
    world.exits(rigid)
    assert world.job(big).earmark


def test_a_job_that_may_not_be_requeued_is_never_moved():
    world = a_world(4)
    job = wide(world, requeue=False)
    world.passes(HOUR)
    other = world.submit(gpus=1)
    assert world.states(job, other) == [JobState.RUNNING, JobState.PENDING]


def test_moves_do_not_use_up_its_requeues():
    world = a_world(4)
    job = wide(world, max_requeues=1)
    for _ in range(2):
        world.passes(HOUR)
        other = world.submit(gpus=1)
        resized(world, job)
        world.started(other)
        goes_on(world, job)
        world.exits(other)
        world.passes(10 * MINUTE)
        resized(world, job)  # it grows again
        goes_on(world, job)
    assert world.job(job).restarts == 4 and world.job(job).counted_restarts == 0
    world.lost(job)
    assert world.job(job).state is not JobState.LOST
    world.started(job)
    world.lost(job)
    assert world.states(job) == [JobState.LOST]


# ---- what people say -----------------------------------------------------------------------------------------------


def test_an_update_makes_a_job_elastic_and_rigid_again():
    world = a_world(4)
    world.submit(gpus=4)
    job = world.submit(gpus=2)
    assert world.update(job, gpus=1, gpus_max=4, gpu_counts=()) == "changed: gpus = 1-4"
    assert world.update(job, gpus=2, gpus_max=0) == "changed: gpus = 2"
    assert world.update(job, gpus=1, gpus_max=4, gpu_counts=(1, 2, 4)) == "changed: gpus = 1,2,4"
    with pytest.raises(UsageError):
        world.update(job, gpus=4, gpus_max=2)


def test_a_preview_tells_of_more_devices_and_of_those_that_are_lent():
    world = a_world(4)
    assert world.preview(gpus=1, gpus_max=4) == "would start now on device 0, and on more that are free"
    job = wide(world)
    world.passes(HOUR)
    assert world.preview(gpus=2) == f"would get devices that job {job} gives back"
