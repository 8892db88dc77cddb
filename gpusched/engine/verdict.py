"""From how an attempt ended to what becomes of its job. A pure table; the engine carries it out.

| stop asked      | outcome                          | job                                                          |
|-----------------|----------------------------------|--------------------------------------------------------------|
| any             | exit 0                           | COMPLETED: done is done                                       |
| cancel          | anything else                    | CANCELLED (a saved checkpoint is kept)                        |
| time limit      | anything else                    | TIMEOUT (resumable with `requeue`)                            |
| preempt, yield… | saved, or 85, or anything else   | back to the queue, if it may be requeued, else PREEMPTED      |
|                 |                                  | (FAILED where the cause was a failed device)                  |
| none            | exit 85                          | back to the queue; held if it repeats without saving          |
| none            | another code, or a signal        | FAILED                                                        |
| none            | lost                             | back to the queue, if it may be requeued, else LOST (also if  |
|                 |                                  | it is lost again and again without having saved anything new) |
| resize          | saved, or 85, or anything else   | back to the queue, to start at once on its new devices        |
| any             | launch failed (exec, chdir, …)   | FAILED with errno and the sentence (CANCELLED if cancelled)   |
| any             | never started                    | back to the queue, not counted (held if it repeats)           |
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from gpusched.model.evolve import swift
from gpusched.model.job import Attempt, Hold, HoldKind, Job
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind, Stop, StopKind

EXIT_SAVED = 85  # the same number as rundir.EXIT_SAVED; a test holds them equal


@swift
@dataclass(frozen=True, slots=True)
class Verdict:
    state: JobState
    because: str
    restarts: int
    failed_starts: int = 0
    losses: int = 0
    unasked_requeues: int = 0
    yielding: bool = False
    hold: Hold | None = None


def judge(job: Job, attempt: Attempt, outcome: Outcome, rules: Rules) -> Verdict:
    """What becomes of `job` whose `attempt` ended with `outcome` (attempt.saved is up to date)."""
    stop = job.stop
    said = describe(outcome)
    if outcome.kind is OutcomeKind.EXITED and outcome.code == 0:
        return Verdict(JobState.COMPLETED, said, job.restarts)
    if stop is not None and stop.kind is StopKind.CANCEL:
        return Verdict(JobState.CANCELLED, stop.phrase(), job.restarts)
    if outcome.kind is OutcomeKind.NEVER_STARTED:
        return _never_started(job, outcome, rules)
    if outcome.kind is OutcomeKind.LAUNCH_FAILED:
        return Verdict(JobState.FAILED, said, job.restarts)
    if stop is not None and stop.kind is StopKind.TIME_LIMIT:
        return Verdict(JobState.TIMEOUT, stop.phrase(), job.restarts)
    if stop is not None:
        return _stopped(job, attempt, stop, said)
    if outcome.kind is OutcomeKind.LOST:
        return _lost(job, attempt, said, rules)
    if outcome.code == EXIT_SAVED:
        return _saved_unasked(job, attempt, rules)
    return Verdict(JobState.FAILED, said, job.restarts)


def describe(outcome: Outcome) -> str:
    """The outcome in words: `exit code 3`, `killed by SIGKILL`, …"""
    match outcome.kind:
        case OutcomeKind.EXITED:
            return f"exit code {outcome.code}"
        case OutcomeKind.SIGNALLED:
            name = _signal_name(outcome.signal or 0)
            return f"killed at the end of its grace period ({name})" if outcome.killed else f"ended by {name}"
        case OutcomeKind.LAUNCH_FAILED:
            return outcome.text or "it could not be started"
        case OutcomeKind.LOST:
            return outcome.text or "nobody saw how it ended"
        case OutcomeKind.NEVER_STARTED:
            return outcome.text or "it was never started"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stopped(job: Job, attempt: Attempt, stop: Stop, said: str) -> Verdict:
    how = f"{stop.phrase()}; {'saved' if attempt.saved else said}"
    asked_by_owner = stop.kind in (StopKind.YIELD, StopKind.REQUEUE)
    if stop.kind is StopKind.RESIZE:
        return Verdict(JobState.PENDING, how, job.restarts + 1)
    final = JobState.FAILED if stop.kind is StopKind.DEVICE_FAILED else JobState.PREEMPTED
    if stop.to_cancel or (not job.spec.requeue and not asked_by_owner):
        return Verdict(final, how, job.restarts)
    if _at_its_limit(job) and not asked_by_owner:
        return Verdict(final, f"{how}; {_limit_text(job)}", job.restarts)
    return Verdict(JobState.PENDING, how, job.restarts + 1, yielding=stop.kind is StopKind.YIELD)


def _at_its_limit(job: Job) -> bool:
    """The job's own limit, which counts every restart; without one, orderly stops are not limited."""
    return job.spec.max_requeues is not None and job.counted_restarts >= job.spec.max_requeues


def _limit_text(job: Job) -> str:
    return f"requeued {job.counted_restarts} times, which is its limit"


def _progressed(job: Job, attempt: Attempt) -> bool:
    return attempt.saved is not None and attempt.saved != job.saved


def _lost(job: Job, attempt: Attempt, said: str, rules: Rules) -> Verdict:
    if not job.spec.requeue:
        return Verdict(JobState.LOST, said, job.restarts)
    if _at_its_limit(job):
        return Verdict(JobState.LOST, f"{said}; {_limit_text(job)}", job.restarts)
    losses = 1 if _progressed(job, attempt) else job.losses + 1
    if job.spec.max_requeues is None and losses > rules.max_requeues:
        return Verdict(JobState.LOST, f"{said}; lost {losses} times in a row without saving", job.restarts)
    return Verdict(JobState.PENDING, said, job.restarts + 1, losses=losses)


def _never_started(job: Job, outcome: Outcome, rules: Rules) -> Verdict:
    failures = job.failed_starts + (1 if outcome.text else 0)
    hold = None
    if failures > rules.max_requeues:
        hold = Hold(HoldKind.SYSTEM, f"it could not be started {failures} times in a row: {outcome.text}")
    return Verdict(
        JobState.PENDING, describe(outcome), job.restarts, failed_starts=failures, losses=job.losses,
        unasked_requeues=job.unasked_requeues, hold=hold,
    )


def _saved_unasked(job: Job, attempt: Attempt, rules: Rules) -> Verdict:
    """Exit 85 says "saved, run me again". A job that says so again and again without saving anything is held."""
    if not job.spec.requeue:
        return Verdict(JobState.FAILED, "exit code 85 (saved, run me again), but it was submitted with --no-requeue",
                       job.restarts)
    repeats = 0 if _progressed(job, attempt) else job.unasked_requeues + 1
    hold = None
    if repeats > rules.max_unasked_requeues:
        hold = Hold(HoldKind.SYSTEM, f"it asked to be run again (exit code 85) {repeats} times in a row without saving")
    return Verdict(
        JobState.PENDING, "exit code 85: saved, run me again", job.restarts + 1, unasked_requeues=repeats, hold=hold
    )
