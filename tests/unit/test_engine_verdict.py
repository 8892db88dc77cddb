"""What becomes of a job: every row of the table in engine/verdict.py, and what happens when an end repeats itself."""

from __future__ import annotations

import pytest
from builders import World

from gpusched import rundir
from gpusched.engine import verdict
from gpusched.model.job import HoldKind
from gpusched.model.rules import PreemptMode, Qos, Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind, StopKind

SAVED = verdict.EXIT_SAVED


def test_the_exit_code_for_saved_is_the_one_that_jobs_know():
    assert verdict.EXIT_SAVED == rundir.EXIT_SAVED


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


def test_a_job_that_saves_before_each_loss_comes_back_for_ever():
    world = World(1, rules=Rules(max_requeues=1))
    job = world.submit()
    for step in range(6):
        world.saves(job, step)
        world.lost(job)
    assert world.states(job) == [JobState.STARTING]


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
