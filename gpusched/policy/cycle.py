"""One scheduling cycle: who starts now, and who is asked to leave for whom.

The cycle yields one decision at a time and the engine carries each out before asking for the next, so that the
view is always true. The steps:

1. Preemptors whose victims have left start on exactly the devices they were promised; a promise that can no longer
   be kept (a device failed or is in foreign use) is withdrawn and the job waits as any other.
2. The waiting jobs, in scheduling order (`View.order`): start what fits; else plan a preemption, if the level may;
   else it stays, and so do all jobs that ask for the same.
3. Fit-first with a bypass limit: a later job may start on devices that an earlier one cannot use *now*. Each time
   it is counted on the first job that waits and could run on the devices as they are today; past the limit the
   devices that job could use are kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from gpusched.model.job import Job, Share
from gpusched.policy.fit import fit, foreign_blocks, possible
from gpusched.policy.preempt import Plan, plan_preemption
from gpusched.policy.view import Bucket, View


@dataclass(frozen=True, slots=True)
class Start:
    job_id: int
    devices: tuple[Share, ...]
    past: int | None = None  # the waiting job that this start goes past


@dataclass(frozen=True, slots=True)
class Preempt:
    job_id: int
    plan: Plan
    past: int | None = None  # the waiting job that this plan goes past


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The promise of devices to this job cannot be kept."""

    job_id: int
    reason: str


Decision = Start | Preempt | Withdraw


def cycle(view: View) -> Iterator[Decision]:
    """The decisions of one cycle, in order. The caller applies each to the view before taking the next."""
    yield from _promises(view)
    yield from _queue(view)


def _promises(view: View) -> Iterator[Decision]:
    for job_id in sorted(view.claimants, key=lambda i: view.order(view.jobs[i])):
        job = view.jobs[job_id]
        broken = _broken_promise(view, job)
        if broken:
            yield Withdraw(job_id, broken)
            continue
        if view.array_full(job):
            continue
        shares = fit(view, job, guarded=_all_but(view, job.earmark))
        if shares is not None:
            yield Start(job_id, shares)


def _broken_promise(view: View, job: Job) -> str:
    """Why the earmarked devices can never become the job's, or nothing if they still can."""
    for uuid in job.earmark:
        slot = view.slots.get(uuid)
        if slot is None or not slot.device.usable:
            return f"device {slot.device.index if slot else uuid} is no longer usable"
        if slot.kept_for != job.id:
            return f"device {slot.device.index} is kept for job {slot.kept_for}"
        if foreign_blocks(slot, job.spec.request, view.rules.foreign_floor_mib):
            return f"device {slot.device.index} is in use by processes outside gpusched"
    with view.without(view.departing(job)):
        if fit(view, job, guarded=_all_but(view, job.earmark)) is None:
            return "what it was promised has not become free"
    return ""


def _all_but(view: View, uuids: tuple[str, ...]) -> set[str]:
    return view.slots.keys() - set(uuids)


def _queue(view: View) -> Iterator[Decision]:
    if not view.buckets or not _anything_to_give(view):
        return
    queue, failed = _Queue(view), _Failed()
    first_waiting: Job | None = None
    guarded: frozenset[str] = frozenset()
    while (bucket := queue.pop()) is not None:
        job = view.jobs[view.buckets[bucket][0]]
        if view.array_full(job):
            continue
        if not failed.covers(bucket):
            shares = fit(view, job, guarded)
            if shares is not None:
                past = _goes_past(view, first_waiting, tuple(share.uuid for share in shares))
                yield Start(job.id, shares, past)
                if not _anything_to_give(view):
                    return
                queue.push_next(bucket)
                continue
            plan = plan_preemption(view, job, guarded)
            if plan is not None:
                yield Preempt(job.id, plan, _goes_past(view, first_waiting, plan.devices))
                queue.push_next(bucket)
                continue
            failed.add(bucket)
        if first_waiting is None and bucket.request.gpus and possible(view, bucket.request):
            first_waiting = job
            if job.bypassed >= view.rules.bypass_limit:
                guarded = view.kind(bucket.request)


def _anything_to_give(view: View) -> bool:
    """False: every device is taken by jobs that stay, so that no waiting job needs to be looked at."""
    if view.leaving or (view.cpu_running < view.rules.cpu_jobs and any(not b.request.gpus for b in view.buckets)):
        return True
    if any(slot.kept_for is None and slot.device.usable and not slot.exclusive for slot in view.slots.values()):
        return True
    preemptible = {victim for level in view.rules.qos.values() for victim in level.preempts}
    holding = (view.jobs[job_id] for job_id, attempt in view.live.items() if attempt.devices)
    return any(job.stop is not None or job.spec.qos in preemptible for job in holding)


class _Queue:
    """The buckets in the scheduling order of their first jobs. A bucket whose job was served is pushed again."""

    def __init__(self, view: View) -> None:
        self._view = view
        # sorted once and read from its end: nearly all of thousands of buckets are looked at once and not served
        self._rest = sorted(((view.order(view.jobs[ids[0]]), b) for b, ids in view.buckets.items()), reverse=True)
        self._pushed: list[tuple[tuple[bool, int, int], Bucket]] = []

    def pop(self) -> Bucket | None:
        if self._pushed and (not self._rest or self._pushed[0][0] < self._rest[-1][0]):
            return heappop(self._pushed)[1]
        return self._rest.pop()[1] if self._rest else None

    def push_next(self, bucket: Bucket) -> None:
        ids = self._view.buckets.get(bucket)
        if ids:
            heappush(self._pushed, (self._view.order(self._view.jobs[ids[0]]), bucket))


class _Failed:
    """Requests that could not be met. Whoever asks for at least as much, later in the order, need not be tried."""

    def __init__(self) -> None:
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

    @staticmethod
    def _alike(bucket: Bucket) -> tuple[object, ...]:
        """What two requests must have in common for their sizes to be comparable."""
        request = bucket.request
        return bucket.qos, bucket.patient, request.shared, request.gpu_type, request.partition, request.gpus == 0


def _goes_past(view: View, waiting: Job | None, uuids: tuple[str, ...]) -> int | None:
    if waiting is None:
        return None
    wanted = waiting.spec.request
    useful = any(view.suits(view.slots[uuid].device, wanted) for uuid in uuids)
    return waiting.id if useful else None
