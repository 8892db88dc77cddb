"""How jobs are stopped and what becomes of them: time limits, cancels, kills, and the table of verdicts."""

from __future__ import annotations

import pytest
from builders import World

from gpusched import rundir
from gpusched.engine import verdict
from gpusched.engine.attempts import KILL_AGAIN
from gpusched.model.actions import Ask, Asked, Forget, Kill, Launch, LookAgain
from gpusched.model.errors import Refused
from gpusched.model.events import ServiceStopping
from gpusched.model.job import HoldKind
from gpusched.model.rules import PreemptMode, Qos, Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind, StopKind

SAVED = verdict.EXIT_SAVED


def test_the_exit_code_for_saved_is_the_one_that_jobs_know():
    assert verdict.EXIT_SAVED == rundir.EXIT_SAVED


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


# ---- the table of engine/verdict.py -------------------------------------------------------------------------------

EXIT_0, EXIT_3, EXIT_85 = (Outcome(OutcomeKind.EXITED, code=code) for code in (0, 3, SAVED))
SEGV = Outcome(OutcomeKind.SIGNALLED, signal=11)
LOST = Outcome(OutcomeKind.LOST)
NO_LAUNCH = Outcome(OutcomeKind.LAUNCH_FAILED, errno=2, text="cannot run train: no such file")
NEVER = Outcome(OutcomeKind.NEVER_STARTED)
BACK = {JobState.STARTING}  # back to the queue, and started again at once


def stop(world: World, job: int, kind: StopKind | None) -> None:
    match kind:
        case None:
            pass
        case StopKind.CANCEL:
            world.cancel(job)
        case StopKind.TIME_LIMIT:
            world.update(job, time_limit=1.0)
            world.passes(2)
        case StopKind.YIELD:
            world.preempt(job)
        case StopKind.REQUEUE:
            world.requeue(job)
        case _:
            raise AssertionError(kind)
    if kind is not None:
        assert world.job(job).stop.kind is kind


@pytest.mark.parametrize(
    ("kind", "outcome", "requeue", "state"),
    [
        *[(kind, EXIT_0, True, "COMPLETED") for kind in (None, StopKind.CANCEL, StopKind.TIME_LIMIT, StopKind.YIELD)],
        *[(StopKind.CANCEL, outcome, True, "CANCELLED") for outcome in (EXIT_3, EXIT_85, SEGV, LOST, NO_LAUNCH)],
        *[(StopKind.TIME_LIMIT, outcome, True, "TIMEOUT") for outcome in (EXIT_3, EXIT_85, SEGV, LOST)],
        *[(StopKind.YIELD, outcome, False, "STARTING") for outcome in (EXIT_3, EXIT_85, SEGV, LOST)],
        *[(StopKind.REQUEUE, outcome, False, "STARTING") for outcome in (EXIT_3, EXIT_85, SEGV)],
        (None, EXIT_85, True, "STARTING"),
        (None, EXIT_85, False, "FAILED"),
        (None, EXIT_3, True, "FAILED"),
        (None, SEGV, True, "FAILED"),
        (None, LOST, True, "STARTING"),
        (None, LOST, False, "LOST"),
        *[(kind, NO_LAUNCH, True, "FAILED") for kind in (None, StopKind.TIME_LIMIT, StopKind.YIELD)],
        *[(kind, NEVER, False, "STARTING") for kind in (None, StopKind.TIME_LIMIT, StopKind.YIELD)],
        (StopKind.CANCEL, NEVER, True, "CANCELLED"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_job_follows_from_why_it_was_stopped_and_how_it_ended(kind, outcome, requeue, state):
    world = World(1)
    job = world.submit(requeue=requeue)
    if outcome not in (NO_LAUNCH, NEVER) or kind is StopKind.TIME_LIMIT:
        world.started(job)
    stop(world, job, kind)
    world.ends(job, outcome)
    assert world.states(job) == [JobState(state)]
    assert bool(world.job(job).ended_because) == world.job(job).state.final


@pytest.mark.parametrize(
    ("outcome", "requeue", "state"),
    [(EXIT_0, True, "COMPLETED"), (EXIT_85, True, "PENDING"), (EXIT_3, True, "PENDING"), (LOST, True, "PENDING"),
     (EXIT_85, False, "PREEMPTED"), (NEVER, False, "PENDING"), (NO_LAUNCH, True, "FAILED")],
)  # fmt: skip
def test_what_becomes_of_a_preempted_job(outcome, requeue, state):
    world = World(1)
    low = world.submit(qos="low", requeue=requeue)
    high = world.submit(qos="high")
    world.ends(low, outcome)
    assert world.states(low, high) == [JobState(state), JobState.STARTING]


def test_in_preempt_mode_cancel_the_victim_saves_and_does_not_come_back():
    levels = {"spot": Qos("spot", 0, mode=PreemptMode.CANCEL), "normal": Qos("normal", 1, ("spot",))}
    world = World(1, rules=Rules(qos=levels))
    spot = world.submit(qos="spot")
    world.submit()
    world.exits(spot, code=SAVED, saved_step=4)
    assert world.states(spot) == [JobState.PREEMPTED]
    assert "saved" in world.job(spot).ended_because


def test_a_job_of_a_failed_device_goes_back_to_the_queue_or_fails_if_it_may_not():
    world = World(2)
    may, may_not = world.submit(), world.submit(requeue=False)
    for index, job in ((0, may), (1, may_not)):
        world.fails(index)
        assert world.job(job).stop.kind is StopKind.DEVICE_FAILED
        world.exits(job, signal=6, clear=False)
    assert world.states(may, may_not) == [JobState.PENDING, JobState.FAILED]
    assert "device failed" in world.job(may_not).ended_because


# ---- what repeats -------------------------------------------------------------------------------------------------


def test_a_job_that_asks_to_be_run_again_and_again_without_saving_is_held():
    world = World(1, rules=Rules(max_unasked_requeues=2))
    job = world.submit()
    for _ in range(3):
        assert world.states(job) == [JobState.STARTING]
        world.started(job)
        world.exits(job, code=SAVED)
    assert world.job(job).hold.kind is HoldKind.SYSTEM
    assert "3 times in a row" in world.why(job).text
    world.release(job)
    assert world.states(job) == [JobState.STARTING]


def test_a_job_that_saves_each_time_may_ask_to_be_run_again_for_ever():
    world = World(1, rules=Rules(max_unasked_requeues=2))
    job = world.submit()
    for step in range(10):
        world.started(job)
        world.exits(job, code=SAVED, saved_step=step)
    assert (world.states(job), world.job(job).restarts) == ([JobState.STARTING], 10)


def test_a_job_that_is_lost_again_and_again_ends_as_lost():
    world = World(1, rules=Rules(max_requeues=2))
    job = world.submit()
    for _ in range(3):
        world.started(job)
        world.lost(job)
    assert world.states(job) == [JobState.LOST]
    assert "3 times in a row" in world.job(job).ended_because


def test_preemptions_do_not_count_as_losses():
    world = World(1, rules=Rules(max_requeues=1))
    low = world.submit(qos="low")
    for _ in range(3):
        high = world.submit(qos="high")
        world.exits(low, code=SAVED)
        world.exits(high)
    world.lost(low)
    assert world.states(low) == [JobState.STARTING]


def test_a_limit_of_its_own_counts_every_restart():
    world = World(1)
    low = world.submit(qos="low", max_requeues=1)
    for expected in (JobState.PENDING, JobState.PREEMPTED):
        high = world.submit(qos="high")
        world.exits(low, code=SAVED)
        assert world.states(low) == [expected]
        world.exits(high)
    assert "its limit" in world.job(low).ended_because


def test_a_job_that_never_gets_started_is_held_with_the_reason():
    world = World(1, rules=Rules(max_requeues=2))
    job = world.submit()
    for _ in range(3):
        world.never_starts(job, "fork: out of memory")
    assert world.job(job).hold.kind is HoldKind.SYSTEM
    assert "fork: out of memory" in world.why(job).text
    assert world.running() == set()


def test_a_start_that_was_revoked_without_a_fault_does_not_count():
    world = World(1, rules=Rules(max_requeues=0))
    job = world.submit()
    for _ in range(5):
        world.never_starts(job)
    assert (world.states(job), world.job(job).restarts) == ([JobState.STARTING], 0)


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
