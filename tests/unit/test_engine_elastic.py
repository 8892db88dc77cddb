"""Elastic jobs in the engine: they start on what is there, give back what others need, and grow where it pays."""

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.errors import UsageError
from gpusched.model.job import Speed
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, StopKind

MINUTE, HOUR = 60.0, 3600.0


def rules(**policy) -> Rules:
    return replace(Rules.default(), policy=PolicyRules(**{"resize_interval": 5 * MINUTE, **policy}))


def a_world(gpus=4, **policy) -> World:
    return World(gpus, rules=rules(**policy))


def wide(world: World, least=1, most=4, **more) -> int:
    """An elastic job that runs and can save."""
    job = world.submit(gpus=least, gpus_max=most, **more)
    world.started(job)
    world.watches(job)
    return job


def resized(world: World, job: int) -> None:
    """It saves and leaves, as it was asked to."""
    assert world.job(job).state is JobState.STOPPING
    step = int(world.now.boot)
    world.exits(job, code=85, saved_step=step)


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
    for job in (scales, flat):
        world.started(job)
        world.watches(job)
    put_speeds(world, scales, Speed(1, 1.0), Speed(2, 2.0))
    put_speeds(world, flat, Speed(1, 1.0), Speed(2, 1.1))
    world.passes(5 * MINUTE)
    world.submit(gpus=1)
    assert world.states(scales, flat) == [JobState.RUNNING, JobState.STOPPING]


def put_speeds(world: World, job: int, *speeds: Speed) -> None:
    """As if it had been measured in earlier attempts."""
    world.engine.view.jobs[job] = replace(world.job(job), speeds=speeds)


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
        world.started(job, other)
        world.watches(job)
        world.exits(other)
        world.passes(10 * MINUTE)
        resized(world, job)  # it grows again
        world.started(job)
        world.watches(job)
    assert world.job(job).restarts == 4 and world.job(job).counted_restarts == 0
    world.lost(job)
    assert world.job(job).state is not JobState.LOST
    world.started(job)
    world.lost(job)
    assert world.states(job) == [JobState.LOST]


# ---- growing -------------------------------------------------------------------------------------------------------


def test_it_grows_again_when_the_other_has_ended():
    world = a_world(4)
    job = wide(world)
    world.passes(HOUR)
    other = world.submit(gpus=2)
    resized(world, job)
    world.started(job, other)
    world.watches(job)
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
            world.started(job)
            world.watches(job)
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


def test_it_never_grows_to_a_number_that_was_measured_to_be_no_faster():
    world = a_world(2)
    job = wide(world, most=2)
    world.progresses(job, 0)
    world.passes(HOUR)
    world.progresses(job, 3600)
    other = world.submit(gpus=1)
    resized(world, job)
    world.started(job, other)
    world.watches(job)
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
    world.started(job, other)
    world.watches(job)
    big = world.submit(gpus=4)
    world.passes(HOUR)
    world.exits(other)
    world.passes(HOUR)
    assert world.states(job, big) == [JobState.RUNNING, JobState.PENDING] and len(world.where(job)) == 1


def test_a_job_with_much_more_than_another_shares_with_it():
    world = a_world(4)
    first = wide(world)
    world.passes(HOUR)
    second = world.submit(gpus=1, gpus_max=4)
    resized(world, first)
    world.started(first, second)
    world.watches(first)
    world.watches(second)
    assert (len(world.where(first)), len(world.where(second))) == (3, 1)
    world.passes(9 * MINUTE)
    assert world.states(first, second) == [JobState.RUNNING, JobState.RUNNING]
    world.passes(MINUTE)  # as long again as it has run: now that is worth both moves
    assert world.states(first, second) == [JobState.STOPPING, JobState.STOPPING]
    assert world.job(first).stop.phrase() == f"gives 1 of its 3 devices to job {second}"
    resized(world, second)
    assert world.where(second) == ()  # its new device is not free yet
    resized(world, first)
    assert (len(world.where(first)), len(world.where(second))) == (2, 2)
    assert {*world.where(first), *world.where(second)} == {0, 1, 2, 3}


# ---- trouble -------------------------------------------------------------------------------------------------------


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
        exited = world.end(world.key(job), world_outcome())
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


def world_outcome():
    from gpusched.model.state import Outcome, OutcomeKind

    return Outcome(OutcomeKind.EXITED, code=85)


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
    world.started(job, other)
    world.watches(job)
    world.exits(other)
    world.passes(HOUR)
    resized(world, job)
    assert len(world.where(job)) == 4


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
