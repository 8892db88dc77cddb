"""What an ended job teaches about those to come: who ran what on how many devices, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.model.evolve import swift
from gpusched.model.job import Job
from gpusched.model.state import JobState

REMEMBERED = 5000  # ended jobs that the daemon learns from at its start
FALSE_START = 300.0  # seconds: who fails or is cancelled sooner has not shown how long its work takes
FALSE_STARTERS = frozenset({JobState.FAILED, JobState.CANCELLED})
LEARNED = FALSE_STARTERS | {JobState.COMPLETED, JobState.TIMEOUT}


@swift
@dataclass(frozen=True, slots=True)
class Past:
    """One ended job. ran: seconds of running in all, without what its preemptions cost it."""

    user: str
    account: str
    name: str
    gpus: int
    ran: float


def taught(job: Job) -> Past | None:
    """What an ended job teaches; None if it teaches nothing.

    Completed jobs do, and so do those that met their time limit: that long devices are held. One that failed or was
    cancelled has held them as long too, but not if that was a false start: ten typing errors would say that training
    takes five seconds. Who was preempted for good or lost has not shown when it would have ended.
    """
    if job.state not in LEARNED or job.ran <= 0 or job.spec.cron is not None:
        return None
    if job.state in FALSE_STARTERS and job.ran < FALSE_START:
        return None
    spec = job.spec
    return Past(job.owner.user, job.account, spec.name, spec.request.gpus, max(0.0, job.ran - job.lost))
