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
from gpusched.policy.view import View

_NONE: frozenset[str] = frozenset()


class Overdue:
    """The first jobs past their patience, one for each kind of devices, and what is kept for them at this moment."""

    def __init__(self, view: View, now: Instant) -> None:
        self._view = view
        self._kinds: dict[int, frozenset[str]] = {}  # of such a job
        heads = [view.head(bucket) for bucket in view.buckets if bucket.overdue and bucket.request.gpus]
        for job in sorted(heads, key=view.order):
            kind = competes_for(view, job.spec.request)
            ahead = any(not kind.isdisjoint(other) for other in self._kinds.values())
            if not ahead and self._may(job) and possible(view, job.spec.request, closed(view, job, now)):
                self._kinds[job.id] = kind

    def _may(self, job: Job) -> bool:
        return not self._view.array_full(job) and limited(self._view, job) is None

    def kept_from(self, job: Job) -> frozenset[str]:
        """What this waiting job may not have, because one of them stands before it and still waits for devices only."""
        if not self._kinds:
            return _NONE
        mine, view = self._view.order(job), self._view
        firsts = [first for job_id in self._kinds if view.place(first := view.jobs[job_id]) is not None]
        ahead = [first for first in firsts if view.order(first) < mine and self._may(first)]
        return _NONE.union(*(self._kinds[first.id] for first in ahead))

    def among(self, waiting: Sequence[Job]) -> list[Job]:
        """These waiting jobs and the overdue ones, in order: they are tried even if the count left too few for them."""
        there = {job.id for job in waiting}
        others = [self._view.jobs[job_id] for job_id in self._kinds if job_id not in there]
        return sorted((*waiting, *others), key=self._view.order) if others else list(waiting)
