"""The races of the design, each as a named case."""

from __future__ import annotations

from builders import World

from gpusched.model.state import JobState, Outcome, OutcomeKind, StopKind
from gpusched.policy.explain import Word

WAITS, GOES, STOPS, DONE = JobState.PENDING, JobState.STARTING, JobState.STOPPING, JobState.COMPLETED


def test_the_preemptor_gets_exactly_the_devices_that_its_victims_leave():
    world = World(3)
    low = world.submit(gpus=2, qos="low")
    normal = world.submit()
    high = world.submit(gpus=2, qos="high")
    assert world.asked_to_stop() == [low]
    assert world.where(normal) == (2,)
    world.submit()  # what becomes free is not for others
    world.exits(low, code=85, saved_step=3, clear=[0])
    assert world.states(high) == [WAITS]
    world.leaves(low)
    assert world.where(high) == (0, 1)


def test_the_preemptor_is_cancelled_while_its_victims_save():
    # 1. high asks low to leave; 2. high is cancelled; 3. low finishes saving; 4. the device is given out anew
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    normal = world.submit()
    world.cancel(high)
    assert world.states(low) == [STOPS]
    assert world.job(normal).earmark == ("GPU-0",)  # now promised to the next in order
    world.exits(low, code=85, saved_step=1)
    assert world.states(low, normal) == [WAITS, GOES]


def test_the_preemptor_is_cancelled_and_the_victim_itself_is_the_next_in_order():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    world.cancel(high)
    world.exits(low, code=85, saved_step=1)
    assert (world.states(low), world.job(low).attempt) == ([GOES], 2)


def test_a_victims_device_fails_while_it_stops():
    # 1. high was promised the device; 2. it fails; 3. the promise is withdrawn; 4. high gets the other one
    world = World(2)
    low, other = world.submit(qos="low"), world.submit(qos="low")
    high = world.submit(qos="high")
    assert world.asked_to_stop() == [other]  # the younger
    world.fails(1)
    assert world.states(other) == [STOPS]
    assert world.job(other).stop.kind is StopKind.PREEMPT  # it is leaving already
    assert "replanned" in world.kinds(high)
    assert world.asked_to_stop() == [low]
    world.exits(other, signal=6, clear=False)
    world.exits(low, code=85)
    assert world.where(high) == (0,)
    assert world.states(other) == [WAITS]


def test_one_device_of_a_gang_fails_and_the_whole_gang_is_asked_to_leave():
    world = World(3)
    gang = world.submit(gpus=3)
    world.started(gang)
    world.fails(1)
    assert world.asked_to_stop() == [gang]
    assert world.job(gang).stop.kind is StopKind.DEVICE_FAILED
    world.exits(gang, code=85, saved_step=2, clear=[0, 2])
    assert world.states(gang) == [WAITS]
    assert world.why(gang).word is Word.DEVICE_UNAVAILABLE
    assert "device 1 failed: it has fallen off the bus" in world.why(gang).text
    world.recovers(1)
    world.leaves(gang)
    assert world.where(gang) == (0, 1, 2)


def test_what_was_on_a_failed_device_may_still_be_there_when_it_answers_again():
    world = World(1)
    job = world.submit()
    world.fails(0)
    world.exits(job, signal=6, clear=False)
    world.sample()
    world.recovers(0)
    assert world.states(job) == [WAITS]
    world.leaves(job)
    assert world.states(job) == [GOES]


def test_a_device_that_the_driver_no_longer_lists_is_treated_as_failed():
    world = World(2)
    first, second = world.submit(), world.submit()
    world.vanishes(1)
    assert world.asked_to_stop() == [second]
    world.exits(second, signal=9)
    assert world.why(second).word is Word.RESOURCES
    world.comes_back(1)
    assert world.states(first, second) == [GOES, GOES]


def test_the_job_ends_by_itself_while_it_is_asked_to_stop():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    world.exits(low, code=0)
    assert world.states(low, high) == [DONE, GOES]


def test_the_exit_is_reported_before_the_start():
    world = World(1)
    job, after = world.submit(), world.submit(after="after:1", gpus=0)
    world.exits(job, code=0)
    world.started(job)
    assert world.states(job, after) == [DONE, GOES]


def test_the_promise_is_withdrawn_when_somebody_else_takes_the_memory():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    world.foreign(0, 5000)
    assert world.job(high).earmark == ()
    assert world.why(high).word is Word.FOREIGN_USE
    world.exits(low, code=85)
    assert world.running() == set()
    world.foreign(0, 0)
    assert world.running() == {high}


def test_a_sharing_preemptor_does_not_wait_for_a_share_that_is_no_longer_there():
    world = World(2)
    world.submit(qos="low")
    world.submit(qos="low")
    high = world.submit(qos="high", shared=True, gpu_mem_mib=20_000)
    (victim,) = world.asked_to_stop()
    world.foreign(world.where(victim)[0], 10_000)
    assert len(world.asked_to_stop()) == 1  # the other one has to leave instead
    assert world.job(high).earmark == (f"GPU-{1 - world.where(victim)[0]}",)


def test_a_victim_that_turns_out_not_to_be_needed_is_not_touched():
    # taken in order the young small job would leave first; with the gang's two devices it need not
    world = World(3)
    gang, small = world.submit(gpus=2, qos="low"), world.submit(qos="low")
    world.submit(gpus=2, qos="high")
    assert world.asked_to_stop() == [gang]
    assert world.states(small) == [GOES]


def test_two_preemptors_at_once_never_count_on_the_same_devices():
    world = World(2)
    lows = [world.submit(qos="low") for _ in range(2)]
    highs = [world.submit(qos="high") for _ in range(3)]
    assert sorted(world.asked_to_stop()) == lows
    promised = [world.job(high).earmark for high in highs]
    assert sorted(promised) == [(), ("GPU-0",), ("GPU-1",)]
    for low in lows:
        world.exits(low, code=85)
    assert world.running() == set(highs[:2])


def test_the_second_preemptor_uses_what_the_firsts_victim_leaves_over():
    world = World(2)
    gang = world.submit(gpus=2, qos="low")
    first, second = world.submit(qos="high"), world.submit(qos="high")
    assert world.asked_to_stop() == [gang]
    assert {world.job(j).earmark for j in (first, second)} == {("GPU-0",), ("GPU-1",)}


def test_devices_that_are_being_left_anyway_cost_no_further_victim():
    world = World(2)
    ending, low = world.submit(qos="low"), world.submit(qos="low")
    world.cancel(ending)
    world.asked_to_stop()
    high = world.submit(qos="high")
    assert world.asked_to_stop() == []
    world.exits(ending, code=1)
    assert (world.where(high), world.states(low)) == ((0,), [GOES])


def test_nobody_waits_for_a_device_that_an_ended_job_never_leaves():
    # 1. low has ended, its memory stays; 2. high was promised that device; 3. after a while it is planned anew
    world = World(2)
    low, other = world.submit(qos="low"), world.submit(qos="normal")
    high = world.submit(qos="high")
    world.exits(low, code=85, clear=False)
    for _ in range(40):
        world.passes(1)
        world.sample()
    assert world.asked_to_stop() == [low, other]
    world.exits(other, code=85)
    assert world.where(high) == (1,)
    world.leaves(low)
    assert world.states(other) == [GOES]


def test_the_driver_does_not_answer_for_a_while_and_running_jobs_go_on():
    world = World(2)
    job = world.submit()
    world.started(job)
    world.probe_error = "nvidia-smi hangs"
    world.sample()
    late = world.submit()
    assert world.states(job, late) == [JobState.RUNNING, WAITS]
    assert "driver does not answer" in world.why(late).text
    world.probe_error = None
    world.sample()
    assert world.states(late) == [GOES]


def test_the_daemon_dies_between_the_commit_and_the_launch():
    world = World(1)
    step = world.decide(world.submission())
    world.commit(step)
    world.crash()
    assert (world.states(1), world.job(1).attempt, world.job(1).restarts) == ([GOES], 2, 0)
    assert [key.number for key in world.processes] == [2]


def test_the_daemon_dies_before_the_commit_and_nobody_was_told_anything():
    world = World(1)
    world.decide(world.submission())
    world.crash()
    assert world.engine.state.jobs == {}
    assert world.submit() == 1


def test_the_daemon_dies_after_the_victim_was_asked_and_the_promise_holds():
    world = World(2)
    low, high = world.submit(gpus=2, qos="low"), world.submit(gpus=2, qos="high")
    world.crash()
    assert world.asked_to_stop() == [low]
    assert world.job(high).earmark == ("GPU-0", "GPU-1")
    assert "replanned" not in world.kinds(high)
    world.exits(low, code=85, saved_step=1)
    assert world.where(high) == (0, 1)


def test_a_job_that_ended_while_the_daemon_was_away_has_its_true_end():
    world = World(1)
    job, waiting = world.submit(), world.submit()
    world.started(job)
    world.end(world.key(job), Outcome(OutcomeKind.EXITED, code=3))  # nobody listens
    world.crash()
    assert world.states(job, waiting) == [JobState.FAILED, GOES]
    assert "exit code 3" in world.job(job).ended_because
