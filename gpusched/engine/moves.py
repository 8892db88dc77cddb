"""What being moved really costs a job, measured at its own restarts.

1. It is asked to leave; saving, leaving, and what it had to leave unsaved, are the first part (`Job.leave`).
2. It runs again, loads, and begins to watch for requests: that time is the second part.
3. `Job.cost` is half of what it was and half of the sum, so that it follows a model that grows.

A job that does not watch never shows when it has loaded: for it the rules' assumption stands, or the first part if
that alone is more.
"""

from __future__ import annotations

from gpusched.engine.turn import Turn
from gpusched.engine.verdict import EXIT_SAVED
from gpusched.model.job import Attempt, Job
from gpusched.model.state import OutcomeKind
from gpusched.policy.costs import cost


def left_in(turn: Turn, job: Job, attempt: Attempt) -> float | None:
    """Seconds that leaving took, and work that was not saved, of an attempt that has just ended because it was asked
    to. None if nobody can say: it never ran, or the machine was started anew meanwhile."""
    asked = None if job.stop is None else job.stop.asked
    if asked is None or attempt.started is None or attempt.ended is None:
        return None
    if attempt.boot_id != turn.state.boot_id:
        return None  # two boot clocks
    leaving = max(0.0, attempt.ended - max(asked, attempt.started))
    return leaving + _unsaved(job, attempt, leaving)


def _unsaved(job: Job, attempt: Attempt, leaving: float) -> float:
    """Seconds of work, up to the moment at which it was asked to leave, that the job has to do again."""
    assert attempt.started is not None and attempt.ended is not None
    worked = max(0.0, attempt.ended - leaving - attempt.started)
    outcome = attempt.outcome
    if outcome is not None and outcome.kind is OutcomeKind.EXITED and outcome.code == EXIT_SAVED:
        return 0.0
    if attempt.saved is not None and (attempt.saved.at is None or attempt.ended_at is None):
        return 0.0  # it has saved; nobody knows when
    if attempt.saved is not None and attempt.saved.at is not None and attempt.ended_at is not None:
        before = attempt.ended_at - leaving - attempt.saved.at  # from the save to the request
        return min(worked, max(0.0, before))
    in_all = max(0.0, job.ran + worked - job.lost)  # what was lost before cannot be lost again
    return min(worked, in_all) if job.saved is not None else in_all


def came_back(turn: Turn, job: Job, attempt: Attempt) -> None:
    """A job that had to leave watches again: what moving it has cost is known."""
    if job.leave is None or attempt.started is None or not turn.state.observing:
        return
    charged = cost(turn.view, job)
    took = job.leave + max(0.0, turn.now.boot - attempt.started)
    mean = took if job.cost is None else (job.cost + took) / 2
    turn.put_job(job, cost=mean, leave=None, lost=max(0.0, job.lost + took - charged))
