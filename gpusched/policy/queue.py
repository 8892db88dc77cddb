"""The waiting jobs in scheduling order, bucket by bucket, and which of them need not be tried any more."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from gpusched.model.job import Job
from gpusched.policy.priority import Shifts
from gpusched.policy.reserve import competes_for
from gpusched.policy.rights import claim
from gpusched.policy.view import View
from gpusched.policy.waiting import Bucket, Rank, Waiting

Order = tuple[int, int, bool, Rank, int]


class Queue:
    """The buckets in the scheduling order of their first jobs. A bucket whose job was served is pushed again.

    shift: what the policy adds to the rank of all jobs of one account (their fair share changes while they wait, and
    with every start, so that a burst of one account does not take everything at once).
    """

    def __init__(self, view: View, shift: Shifts | None = None) -> None:
        self._view = view
        self._shift = shift
        self._heap = [(self._key(bucket, waiting), bucket) for bucket, waiting in view.buckets.items()]
        heapify(self._heap)

    def pop(self) -> tuple[Bucket, Job] | None:
        while self._heap:
            before, bucket = heappop(self._heap)
            waiting = self._view.buckets.get(bucket)
            if waiting is None:
                continue
            may_move = self._shift is not None or self._view.in_use.quotas
            if may_move and (present := self._key(bucket, waiting)) > before:
                heappush(self._heap, (present, bucket))  # its account has had a start meanwhile
                continue
            return bucket, self._view.jobs[waiting.entries[0][1]]
        return None

    def push_next(self, bucket: Bucket) -> None:
        """The bucket's first job has been served: its next one takes part."""
        buckets = self._view.buckets
        if self._shift is not None and self._shift.renew(bucket.account):
            self._heap = [(self._key(other, buckets[other]), other) for _, other in self._heap if other in buckets]
            heapify(self._heap)
        waiting = buckets.get(bucket)
        if waiting is not None:
            heappush(self._heap, (self._key(bucket, waiting), bucket))

    def _key(self, bucket: Bucket, waiting: Waiting) -> Order:
        shift = 0.0 if self._shift is None else self._shift[bucket.account]
        return _order(self._view, bucket, waiting.entries[0], shift)


def key(view: View, bucket: Bucket, place: int, shift: float = 0.0) -> Order:
    """The scheduling order of the job at this place of a bucket, as View.order gives it."""
    return _order(view, bucket, view.buckets[bucket].entries[place], shift)


def _order(view: View, bucket: Bucket, entry: tuple[Rank, int], shift: float) -> Order:
    rank, job_id = entry
    if shift and not bucket.overdue:
        rank = rank + shift
    level = view.rules.qos.get(bucket.qos)
    standing = view.standing(view.jobs[job_id]) if view.in_use.quotas else int(bucket.yielding)
    return standing, -level.priority if level else 0, not bucket.overdue, rank, job_id


class Failed:
    """Requests that could not be met. Whoever asks for at least as much, later in the order, need not be tried."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._least: dict[tuple[object, ...], list[tuple[int, int]]] = {}  # devices and MiB of each

    def covers(self, bucket: Bucket) -> bool:
        least = self._least.get(self._alike(bucket))
        if least is None:
            return False
        gpus, mib = self._size(bucket)
        for g, m in least:  # noqa: SIM110, a loop because this is asked thousands of times per cycle
            if gpus >= g and mib >= m:
                return True
        return False

    def add(self, bucket: Bucket) -> None:
        gpus, mib = self._size(bucket)
        key = self._alike(bucket)
        self._least[key] = [(g, m) for g, m in self._least.get(key, ()) if g < gpus or m < mib] + [(gpus, mib)]

    @staticmethod
    def _size(bucket: Bucket) -> tuple[int, int]:
        return bucket.request.gpus, bucket.request.gpu_mem_mib or 0

    def _alike(self, bucket: Bucket) -> tuple[object, ...]:
        """What two requests must have in common for their sizes to be comparable."""
        request = bucket.request
        # who is within a quota may ask others to leave than who is over one
        right = claim(self._view, self._view.head(bucket)) if self._view.in_use.quotas else 1
        of_kind = request.gpu_type, request.partition, request.reservation
        return right, bucket.qos, bucket.patient, request.shared, *of_kind, request.gpus == 0


def anything_to_give(view: View) -> bool:
    """False: every device is taken by jobs that stay, so that no waiting job needs to be looked at."""
    if view.open_devices > _idle(view) or view.partly_open or view.leaving or view.stopping:
        return True
    if any(len(view.live[i].devices) > view.jobs[i].spec.request.gpus for i in view.elastic):
        return True
    if view.in_use.exceeding or (view.cpu_waiting and view.cpu_running < view.rules.cpu_jobs):
        return True
    return any(view.running[victim] for level in view.rules.qos.values() for victim in level.preempts)


def _idle(view: View) -> int:
    """How many devices are open, but reserved for others than those who wait."""
    begun = [r for r in view.reservations.values() if r.begun] if view.reservations else []
    if not begun:
        return 0
    wanted = {bucket.request.reservation for bucket in view.buckets}
    uuids = {uuid for r in begun if r.name not in wanted for uuid in r.devices}
    return sum(1 for uuid in uuids if uuid in view.slots and view.slots[uuid].open)


def goes_past(view: View, waiting: Job | None, uuids: tuple[str, ...]) -> int | None:
    """The id of the waiting job, if it could use one of these devices itself."""
    if waiting is None:
        return None
    return None if competes_for(view, waiting.spec.request).isdisjoint(uuids) else waiting.id
