"""Who comes back when it is asked to leave: whether it may, and whether it has shown that it can."""

from __future__ import annotations

from gpusched.model.job import Attempt, Job


def comes_back(job: Job) -> bool:
    """A job that is asked to leave goes back to the queue, not to its end."""
    spec = job.spec
    return spec.requeue and (spec.max_requeues is None or job.counted_restarts < spec.max_requeues)


def has_shown(job: Job, attempt: Attempt) -> bool:
    """It has shown that it can be stopped and go on: it watches for requests, or it has saved."""
    return attempt.watching or attempt.saved is not None or job.saved is not None
