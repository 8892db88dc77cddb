"""What being moved costs a job, in seconds: measured at its own restarts, else what the rules assume."""

from __future__ import annotations

from gpusched.model.job import Job
from gpusched.policy.view import View


def cost(view: View, job: Job) -> float:
    """Seconds of running that a preemption costs the job. It is at least what leaving alone has taken it the last
    time, if it is not back since."""
    known = job.cost if job.cost is not None else view.rules.policy.cost.of(job.spec.request.gpus)
    return known if job.leave is None else max(known, job.leave)
