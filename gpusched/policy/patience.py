"""Devices kept for jobs past the policy's patience, under the policies that preempt: else they could starve.

Where running jobs can be asked to leave, whoever comes first gets its devices. Jobs that cannot save are not asked,
though, and a gang that waits for several of them would see each device that becomes free go to a smaller job behind
it. So once its patience is over, its kind of devices is kept from all who stand behind it, until it has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        self._first: dict[int, tuple[Any, frozenset[str]]] = {}  # job → its place in the order, its kind of devices
        heads = [view.head(bucket) for bucket in view.buckets if bucket.overdue and bucket.request.gpus]
        for job in sorted(heads, key=view.order):
            kind = competes_for(view, job.spec.request)
            ahead = any(not kind.isdisjoint(other) for _, other in self._first.values())
            if not ahead and self._could_start(job, now):
                self._first[job.id] = view.order(job), kind

    def _could_start(self, job: Job, now: Instant) -> bool:
        view = self._view
        if view.array_full(job) or limited(view, job) is not None:
            return False
        return possible(view, job.spec.request, closed(view, job, now))

    def kept_from(self, job: Job) -> frozenset[str]:
        """What this waiting job may not have, because one of them stands before it and still waits."""
        if not self._first:
            return _NONE
        mine = self._view.order(job)
        ahead = [job_id for job_id, (order, _) in self._first.items() if order < mine]
        return _NONE.union(*(self._first[job_id][1] for job_id in ahead if self._waits(job_id)))

    def _waits(self, job_id: int) -> bool:
        return self._view.place(self._view.jobs[job_id]) is not None

    def among(self, waiting: Sequence[Job]) -> list[Job]:
        """These waiting jobs and the overdue ones, in order: they are tried even if the count left too few for them."""
        there = {job.id for job in waiting}
        others = [self._view.jobs[job_id] for job_id in self._first if job_id not in there]
        return sorted((*waiting, *others), key=self._view.order) if others else list(waiting)
