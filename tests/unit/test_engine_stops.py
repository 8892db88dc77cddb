"""How jobs are stopped: time limits, cancels, kills; and messages that come late or out of order."""

from __future__ import annotations

import pytest
from builders import World

from gpusched.engine import verdict
from gpusched.engine.attempts import KILL_AGAIN
from gpusched.model.actions import Ask, Asked, Forget, Kill, Launch, LookAgain
from gpusched.model.errors import Refused
from gpusched.model.events import ScriptChanged, ServiceStopping
from gpusched.model.job import AttemptKey
from gpusched.model.state import JobState, Outcome, OutcomeKind

SAVED = verdict.EXIT_SAVED


def test_a_job_that_starts_runs_and_ends_leaves_nothing_to_do():
    world = World(1)
    job = world.submit()
    (launch,) = world.take(Launch)
    assert (launch.attempt, [s.uuid for s in launch.devices], launch.job.state) == ((job, 1), ["GPU-0"], "STARTING")
    world.started(job)
    assert world.states(job) == [JobState.RUNNING]
    world.exits(job)
    assert world.states(job) == [JobState.COMPLETED]
    assert [f.attempt for f in world.take(Forget)] == [(job, 1)]
    world.nothing_left()
    assert world.kinds(job) == ["submitted", "starting", "started", "exited", "completed"]


def test_hours_in_which_no_daemon_looked_are_nobodys_gpu_time():
    world = World(1)
    job = world.submit()
    world.started(job)
    start = world.engine.view.live[job]
    world.passes(7200)
    told = Outcome(OutcomeKind.EXITED, code=0, ended_wall=start.started_at + 60, ended_boot=start.started + 60)
    world.ends(job, told, clear=False)
    (attempt,) = world.engine.view.leaving.values()
    assert (attempt.ended, attempt.ended_at) == (start.started + 60, start.started_at + 60)
    assert world.job(job).ended_at == start.started_at + 60


@pytest.mark.parametrize("off", [-1e9, 1e9])
def test_an_end_outside_of_the_time_the_attempt_had_is_moved_into_it(off):
    world = World(1)
    job = world.submit()
    world.started(job)
    start = world.engine.view.live[job]
    world.passes(100)
    wall, boot = start.started_at + off, start.started + off
    world.ends(job, Outcome(OutcomeKind.EXITED, code=0, ended_wall=wall, ended_boot=boot), clear=False)
    (attempt,) = world.engine.view.leaving.values()
    lasted = 0 if off < 0 else 100
    assert (attempt.ended, attempt.ended_at) == (start.started + lasted, start.started_at + lasted)


# ---- time limits --------------------------------------------------------------------------------------------------


def test_at_its_time_limit_a_job_is_asked_to_save_and_killed_at_the_end_of_its_grace():
    world = World(1)
    job = world.submit(time_limit=100.0, grace=20.0)
    world.started(job)
    world.passes(99)
    assert world.states(job) == [JobState.RUNNING]
    world.passes(2)
    (ask,) = world.take(Ask)
    assert (ask.what, ask.cause, ask.deadline) == (Asked.STOP, "time limit reached", 1_120.0)
    world.passes(18)
    assert world.killed() == []
    world.passes(2)
    assert world.killed() == [job]
    world.exits(job, signal=9)
    assert world.states(job) == [JobState.TIMEOUT]


def test_with_a_warning_the_job_is_asked_before_its_limit_and_killed_at_it():
    world = World(1)
    job = world.submit(time_limit=100.0, warn=30.0, grace=500.0)
    world.started(job)
    world.passes(71)
    assert world.asked_to_stop() == [job]
    assert world.engine.state.jobs[job].stop.deadline == pytest.approx(1_100.0)
    world.passes(30)
    assert world.killed() == [job]


def test_the_time_limit_counts_from_the_start_of_each_attempt():
    world = World(1)
    job = world.submit(time_limit=100.0)
    world.passes(500)  # a slow start does not count
    assert world.states(job) == [JobState.STARTING]
    world.started(job)
    world.passes(60)
    world.requeue(job)
    world.exits(job, code=SAVED)
    world.started(job)
    world.passes(60)
    assert world.states(job) == [JobState.RUNNING]
    world.passes(50)
    assert world.states(job) == [JobState.STOPPING]


def test_a_restart_of_the_daemon_does_not_start_the_time_anew():
    world = World(1)
    job = world.submit(time_limit=100.0)
    world.started(job)
    world.passes(60)
    world.crash()
    world.passes(50)
    assert world.states(job) == [JobState.STOPPING]


def test_a_grace_period_that_ended_while_the_daemon_was_away_ends_in_a_kill_at_once():
    world = World(1)
    job = world.submit(grace=20.0)
    world.cancel(job)
    world.now = world.now.later(60)
    world.crash()
    assert world.killed() == [job]


def test_a_longer_limit_given_while_the_job_runs_counts_and_a_shorter_one_too():
    world = World(1)
    job = world.submit(time_limit=100.0)
    world.started(job)
    world.update(job, time_limit=300.0)
    world.passes(200)
    assert world.states(job) == [JobState.RUNNING]
    world.update(job, time_limit=100.0)
    world.passes(0)
    assert world.states(job) == [JobState.STOPPING]


def test_a_job_that_saved_at_its_limit_is_resumed_by_requeue():
    world = World(1)
    job = world.submit(time_limit=100.0)
    world.started(job)
    world.passes(101)
    world.exits(job, code=SAVED, saved_step=7)
    assert world.states(job) == [JobState.TIMEOUT]
    assert "ckpt-7" in world.requeue(job)
    assert (world.states(job), world.job(job).saved.step) == ([JobState.STARTING], 7)


# ---- cancel and kill ----------------------------------------------------------------------------------------------


def test_cancelling_a_waiting_job_ends_it_and_makes_room_for_the_next_plan():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    assert world.asked_to_stop() == [low]
    assert world.cancel(high) == "cancelled"
    assert world.states(high) == [JobState.CANCELLED]
    assert world.engine.view.slots["GPU-0"].kept_for is None


def test_cancelling_a_running_job_asks_it_and_a_second_cancel_kills_it_at_once():
    world = World(1)
    job = world.submit(grace=300.0)
    world.started(job)
    assert "killed in 30 s" in world.cancel(job)  # nobody waits five minutes for a job that is not wanted
    assert world.asked_to_stop() == [job]
    assert "killed at once" in world.cancel(job)
    assert world.killed() == [job]
    world.exits(job, signal=9)
    assert world.states(job) == [JobState.CANCELLED]


def test_one_cancel_that_names_a_job_twice_is_one_cancel():
    world = World(2)
    ids = world.submitted(array="0-1").job_ids
    world.cancel(str(ids[0]), "1_1", "2")
    assert world.killed() == []
    assert sorted(world.asked_to_stop()) == list(ids)


def test_a_kill_that_does_not_end_the_attempt_is_repeated_ever_more_rarely():
    world = World(1)
    job = world.submit(grace=5.0)
    world.started(job)
    world.cancel(job)
    world.passes(5.1)
    assert world.killed() == [job]
    world.passes(KILL_AGAIN)
    assert world.killed() == [job]
    world.passes(KILL_AGAIN)
    assert world.killed() == []
    world.passes(24 * 3600)
    assert 100 < len(world.killed()) < 300
    assert "hang in the driver" in world.story(job)[-1]


def test_nobody_waits_for_a_victim_that_cannot_be_killed():
    world = World(2)
    stuck = world.submit(qos="low", grace=5.0)
    other = world.submit(qos="normal")
    high = world.submit(qos="high")
    assert world.asked_to_stop() == [stuck]
    world.passes(100)
    assert world.asked_to_stop() == [other]
    world.exits(other, code=SAVED)
    assert world.where(high) == (1,)


def test_a_cancel_during_a_stop_for_another_reason_wins_and_never_lengthens_the_grace():
    world = World(1)
    low = world.submit(qos="low", grace=10.0)
    world.submit(qos="high")
    world.passes(4)
    assert "killed in 6 s" in world.cancel(low)
    world.exits(low, code=SAVED, saved_step=2)
    assert world.states(low) == [JobState.CANCELLED]
    assert world.job(low).saved.step == 2  # the checkpoint is kept


def test_the_daemon_asks_again_after_a_restart_and_keeps_the_end_of_the_grace_period():
    world = World(1)
    job = world.submit(grace=20.0)
    world.started(job)
    world.cancel(job)
    deadline = world.job(job).stop.deadline
    world.crash()
    (ask,) = world.take(Ask)
    assert ask.deadline == deadline
    world.passes(21)
    assert world.killed() == [job]


def test_a_service_that_ends_may_ask_its_jobs_to_save_and_starts_nothing_new():
    world = World(2)
    job = world.submit()
    world.started(job)
    (reply,) = world.handle(ServiceStopping(world.submission("root").caller, ask_jobs=True))
    assert reply is None
    assert world.asked_to_stop() == [job]
    world.exits(job, code=SAVED)
    assert world.states(job) == [JobState.PENDING]
    world.crash()
    assert world.states(job) == [JobState.STARTING]


# ---- messages that come late --------------------------------------------------------------------------------------


def test_messages_about_an_attempt_that_is_over_are_dropped_and_counted():
    world = World(1)
    job = world.submit()
    world.requeue(job)
    world.exits(job, code=SAVED)
    world.take(Launch)
    before = world.job(job)
    world.started(job, attempt=1)
    world.saves(job, 9, attempt=1)
    world.exits(job, code=1, attempt=1)
    assert world.job(job) == before
    assert dict(world.engine.state.late) == {"started": 1, "saved": 1, "exited": 1}


def test_messages_about_attempts_that_never_were_are_dropped():
    world = World(1)
    job = world.submit()
    world.exits(job, attempt=7)
    assert world.states(job) == [JobState.STARTING]


def test_an_exit_that_is_reported_before_the_start_ends_the_job():
    world = World(1)
    job = world.submit()
    world.exits(job)
    world.started(job)
    assert world.states(job) == [JobState.COMPLETED]
    assert world.engine.state.late["started"] == 1


def test_a_device_that_is_not_seen_free_at_the_exit_is_held_until_a_sample_shows_it_free():
    world = World(1)
    job, waiting = world.submit(), world.submit()
    world.exits(job, clear=False)
    assert [a.uuids for a in world.take(LookAgain)] == [("GPU-0",)]
    assert world.states(job, waiting) == [JobState.COMPLETED, JobState.PENDING]
    world.sample()
    assert world.states(waiting) == [JobState.PENDING]
    world.leaves(job)
    assert world.states(waiting) == [JobState.STARTING]
    assert [f.attempt for f in world.take(Forget)] == [(job, 1)]


def test_memory_that_no_process_explains_keeps_a_device_from_the_next_job():
    world = World(1)
    job, waiting = world.submit(), world.submit()
    world.gpus[0].residual_mib = 900
    world.exits(job, clear=False)
    world.leaves(job)
    assert world.states(waiting) == [JobState.PENDING]
    world.gpus[0].residual_mib = 0
    world.sample()
    assert world.states(waiting) == [JobState.STARTING]


def test_of_a_gang_each_device_is_released_on_its_own():
    world = World(2)
    gang, small = world.submit(gpus=2), world.submit()
    world.exits(gang, clear=[1])
    assert world.where(small) == (1,)
    assert world.take(Forget) == []


def test_a_save_is_refused_for_a_job_that_does_not_watch_and_asked_of_one_that_does():
    world = World(1)
    job = world.submit()
    world.started(job)
    with pytest.raises(Refused, match="does not watch"):
        world.checkpoint(job)
    world.watches(job)
    world.checkpoint(job)
    assert [(a.what, a.deadline) for a in world.take(Ask)] == [(Asked.SAVE, None)]
    world.saves(job, 5)
    assert (world.states(job), world.engine.view.live[job].saved.step) == ([JobState.RUNNING], 5)
    assert world.take(Kill) == []


def test_a_changed_script_is_named_in_the_story_of_the_attempt_that_runs_it():
    world = World(1)
    job = world.submit()
    world.started(job)
    world.handle(ScriptChanged(world.key(job), "ab" * 32))
    world.handle(ScriptChanged(AttemptKey(job, 7), "cd" * 32))  # of an attempt that is no more: dropped
    told = [line for line in world.store.story(job) if line.kind == "script-changed"]
    assert [(line.job_id, line.attempt) for line in told] == [(job, 1)]
    assert "abababababab" in told[0].text
