"""Which running jobs would have to leave for a more important one.

After Kueue's preemption (remove candidates in order until the newcomer fits, then give back every one that turns
out not to be needed).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from gpusched.model.job import Attempt, Job
from gpusched.model.state import JobState
from gpusched.policy.fit import fit
from gpusched.policy.rights import guaranteed, may_reclaim, over_quota
from gpusched.policy.view import Lifted, View


@dataclass(frozen=True, slots=True)
class Plan:
    """The devices that the preemptor will get, and the attempts that must leave them."""

    devices: tuple[str, ...]
    victims: tuple[Attempt, ...]


def candidates(view: View, job: Job) -> list[Attempt]:
    """Attempts that may be asked to leave for `job`, in the order in which they would be taken:

    1. those over the quota of their account first,
    2. then the lowest level,
    3. then the youngest attempt (it has the least work to lose),
    4. then the highest job id.
    """
    suitable = {slot.device.uuid for slot in view.suitable(job.spec.request) if slot.kept_for in (None, job.id)}
    found = [
        attempt
        for job_id, attempt in view.live.items()
        if may_leave(view, view.jobs[job_id], job) and any(share.uuid in suitable for share in attempt.devices)
    ]

    def order(attempt: Attempt) -> tuple[int, int, float, int]:
        victim = view.jobs[attempt.job_id]
        return -view.standing(victim), view.priority(victim), -attempt.created, -attempt.job_id

    found.sort(key=order)
    return found


def may_leave(view: View, victim: Job, job: Job) -> bool:
    """`victim` runs, is not being stopped already, and is of a level that `job`'s level may preempt; or it runs over
    the quota of its account, and `job` is within its own.

    A job whose owner gave its devices back does not take them from those who got them, and a job over its account's
    quota takes nobody's.
    """
    running = victim.state in (JobState.STARTING, JobState.RUNNING)
    if not running or job.patient or over_quota(view, job):
        return False
    return view.rules.may_preempt(job.spec.qos, victim.spec.qos) or may_reclaim(view, victim, job)


def plan_preemption(view: View, job: Job, closed: Container[str] = frozenset()) -> Plan | None:
    """The smallest set of victims of lower levels, in the stated order, whose leaving lets `job` start; or None.

    closed: devices that this job may not use.
    Where the devices of attempts that are leaving anyway will be enough, the plan has no victims: those devices are
    just promised to the job, so that the next preemptor does not count on them too.
    """
    level = view.rules.qos.get(job.spec.qos)
    if job.spec.request.gpus == 0 or level is None or over_quota(view, job):
        return None
    reclaims = bool(view.in_use.exceeding) and guaranteed(view, job)
    if not (level.preempts or reclaims):
        return None
    somebody = reclaims or any(view.running[victim] for victim in level.preempts)
    return plan_among(view, job, candidates(view, job) if somebody else (), closed)


def plan_among(
    view: View, job: Job, willing: Sequence[Attempt], closed: Container[str] = frozenset()
) -> Plan | None:
    """The smallest set of victims among `willing`, taken in this order, whose leaving lets `job` start; or None."""
    lifted: Lifted = []
    try:
        for attempt in view.departing(job):
            view.lift(attempt, lifted)
        shares = fit(view, job, closed)
        if shares is not None:
            return Plan(tuple([share.uuid for share in shares]), ())
        chosen: list[Attempt] = []
        asked: Lifted = []
        try:
            for attempt in willing:
                chosen.append(attempt)
                view.lift(attempt, asked)
                if fit(view, job, closed) is not None:
                    break
            else:
                return None
        finally:
            view.put_back(asked)
        for attempt in chosen[-2::-1]:  # the last one was needed: without it the job did not fit
            rest = [other for other in chosen if other is not attempt]
            if _fits_without(view, job, rest, closed):
                chosen = rest
        with view.without(chosen):
            shares = fit(view, job, closed)
    finally:
        view.put_back(lifted)
    assert shares is not None
    return Plan(tuple([share.uuid for share in shares]), tuple(chosen))


def _fits_without(view: View, job: Job, attempts: list[Attempt], closed: Container[str]) -> bool:
    with view.without(attempts):
        return fit(view, job, closed) is not None
