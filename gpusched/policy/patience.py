"""Devices kept for jobs past the policy's patience, under the policies that preempt: else they could starve.

Where running jobs can be asked to leave, whoever comes first gets its devices. Jobs that cannot save are not asked,
though, and a gang that waits for several of them would see each device that becomes free go to a smaller job behind
it. So once its patience is over, its kind of devices is kept from all who stand behind it, until it has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy.fit import possible
from gpusched.policy.limits import limited
from gpusched.policy.reserve import closed, competes_for
from gpusched.policy.sharing import in_turn
from gpusched.policy.view import View

_NONE: frozenset[str] = frozenset()


class Overdue:
    """The first jobs past their patience, one for each kind of devices, and what is kept for them at this moment.

    Under las accounts come first: who gets what is its account's part has a right to it before those who want more
    than that, however long these have waited, and it is kept for it in the same way.
    """

    def __init__(self, view: View, now: Instant, entitled: frozenset[int] = frozenset()) -> None:
        """entitled: who gets what is its account's part."""
        self._view = view
        self._now = now
        self._entitled = entitled
        self._kinds: dict[int, frozenset[str]] = {}  # of such a job
        heads = [view.head(bucket) for bucket in view.buckets if bucket.overdue and bucket.request.gpus]
        for job in sorted(heads, key=view.order):
            self._keep(job)

    def keep_for(self, job: Job) -> None:
        """It has found no place now. If it has a right to one, nobody else takes what it waits for."""
        if job.id in self._entitled and job.id not in self._kinds:
            self._keep(job)

    def _keep(self, job: Job) -> None:
        view, kind = self._view, competes_for(self._view, job.spec.request)
        rivals = [job_id for job_id, other in self._kinds.items() if not kind.isdisjoint(other)]
        if any(job_id in self._entitled or job.id not in self._entitled for job_id in rivals):
            return  # one before it has the same right
        if self._may(job) and possible(view, job.spec.request, closed(view, job, self._now)):
            self._kinds[job.id] = kind

    def _may(self, job: Job) -> bool:
        return not self._view.array_full(job) and limited(self._view, job) is None

    def kept_from(self, job: Job) -> frozenset[str]:
        """What this waiting job may not have, because one of them stands before it and still waits for devices only."""
        if not self._kinds:
            return _NONE
        view = self._view
        firsts = [first for job_id in self._kinds if view.place(first := view.jobs[job_id]) is not None]
        ahead = [first for first in firsts if self._stands_before(first, job) and self._may(first)]
        return _NONE.union(*(self._kinds[first.id] for first in ahead))

    def _stands_before(self, first: Job, job: Job) -> bool:
        order, mine = self._view.order(first), self._view.order(job)
        if first.id not in self._entitled:
            return order < mine and job.id not in self._entitled
        if job.id not in self._entitled:
            return order[:2] <= mine[:2]
        return order < mine and not order[2]  # of two with the same right, only who is past its patience

    def among(self, waiting: Sequence[Job]) -> list[Job]:
        """These waiting jobs and the overdue ones, in the order in which they are served: the latter are tried even
        if the count left too few for them."""
        there = {job.id for job in waiting}
        others = [self._view.jobs[job_id] for job_id in self._kinds if job_id not in there]
        if not others:
            return list(waiting)
        return sorted((*waiting, *others), key=lambda job: in_turn(self._view.order(job), job.id in self._entitled))
