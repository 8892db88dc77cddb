"""Everything that happens because time has passed: time limits, ends of grace periods, begin times."""

from __future__ import annotations

from gpusched.engine.attempts import ask_to_stop, grace, kill_now
from gpusched.engine.turn import Turn
from gpusched.model.job import Attempt, Job
from gpusched.model.state import JobState, Stop, StopKind


def warning_time(job: Job, attempt: Attempt) -> float | None:
    """When (boot clock) the job is asked to save because its time limit is near; None: no limit."""
    left = job.limit_left
    if left is None or attempt.started is None:
        return None
    return attempt.started + max(0.0, left - job.spec.warn)


def run_out(turn: Turn) -> None:
    """Act on every deadline that has passed."""
    for job_id in sorted(turn.view.stopping | turn.state.timed):
        job, attempt = turn.state.jobs[job_id], turn.view.live[job_id]
        if job.state is JobState.STOPPING:
            if job.stop is not None and job.stop.deadline <= turn.now.boot:
                kill_now(turn, job, _kill_text(job.stop))
            continue
        warned = warning_time(job, attempt)
        if warned is not None and warned <= turn.now.boot:
            patience = job.spec.warn or grace(turn, job)
            ask_to_stop(turn, job, Stop(StopKind.TIME_LIMIT, turn.now.boot + patience))
    for job_id in sorted(turn.state.waiting_for_time):
        job = turn.state.jobs[job_id]
        if job.spec.begin is not None and job.spec.begin <= turn.now.wall:
            turn.put_job(job)  # its eligibility is worked out anew


def _kill_text(stop: Stop) -> str:
    if stop.kills:
        return "killed again: it has not ended, its processes may hang in the driver"
    return "the grace period is over: its whole process tree is killed"


def next_deadline(turn: Turn) -> float | None:
    """The earliest deadline on the boot clock, or when the policy wants to decide again."""
    if not (turn.view.stopping or turn.state.timed):
        return turn.state.look_at
    times = [] if turn.state.look_at is None else [turn.state.look_at]
    for job_id in turn.view.stopping | turn.state.timed:
        job, attempt = turn.state.jobs[job_id], turn.view.live[job_id]
        when = job.stop.deadline if job.state is JobState.STOPPING and job.stop else warning_time(job, attempt)
        if when is not None:
            times.append(when)
    return min(times, default=None)


def next_begin(turn: Turn) -> float | None:
    """The earliest begin time of a job, or begin or end of a reservation, on the wall clock."""
    if not (turn.state.waiting_for_time or turn.view.reservations):
        return None
    begins = (turn.state.jobs[job_id].spec.begin for job_id in turn.state.waiting_for_time)
    boundaries = (r.end if r.begun else r.start for r in turn.view.reservations.values())
    return min((*(begin for begin in begins if begin is not None), *boundaries), default=None)
