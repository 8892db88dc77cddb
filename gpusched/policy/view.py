"""What the policies see: devices, who holds them, what runs and what waits, kept up to date change by change.

The engine is the only one that puts things in. Policies may take victims out for the length of a `with` block
(`with view.without(victims):`) to see what would fit; nothing is ever copied whole.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from gpusched.model.device import Device
from gpusched.model.job import Attempt, AttemptKey, Job, Request
from gpusched.model.rules import Rules
from gpusched.model.state import LIVE, StopKind

_REMEMBERED = 20_000  # different requests for which the suitable devices are remembered
_UNKILLABLE = 3  # kills after which nobody should wait for an attempt to leave


@dataclass(slots=True)
class Slot:
    """One device with its holders (None: the whole device; a number: that many MiB of it) and who it is kept for."""

    device: Device
    holders: dict[AttemptKey, int | None] = field(default_factory=dict)
    kept_for: int | None = None  # the preemptor that victims are leaving it to

    @property
    def shared_mib(self) -> int:
        return sum(share or 0 for share in self.holders.values())

    @property
    def exclusive(self) -> bool:
        return any(share is None for share in self.holders.values())


class Bucket(NamedTuple):
    """Waiting jobs that are interchangeable for placement: if the first does not fit, none of the others does."""

    yielding: bool
    patient: bool
    qos: str
    request: Request
    limited_array: int  # array id if the array has a %limit, else 0


class View:
    """Indexes over the engine's state. Job lists are kept sorted by id: first come, first served within a level."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.jobs: dict[int, Job] = {}
        self.slots: dict[str, Slot] = {}
        self.live: dict[int, Attempt] = {}  # job id → its live attempt
        self.leaving: dict[AttemptKey, Attempt] = {}  # ended, devices not yet seen free
        self.overdue: set[AttemptKey] = set()  # of these, the ones that should have left long ago
        self.buckets: dict[Bucket, list[int]] = {}
        self.claimants: set[int] = set()  # waiting jobs with an earmark
        self.cpu_running = 0
        self.closing = False  # the service is emptying itself: nothing new starts
        self._array_live: Counter[int] = Counter()
        self._array_claims: Counter[int] = Counter()
        self._suitable: dict[Request, tuple[list[Slot], frozenset[str]]] = {}
        self._kinds: dict[frozenset[str], frozenset[str]] = {}  # one object for each set of devices
        self._bucket_of: dict[int, Bucket] = {}

    # ---- what the engine puts in ----------------------------------------------------------------------------

    def put_device(self, device: Device) -> None:
        slot = self.slots.get(device.uuid)
        if slot is None or _identity(slot.device) != _identity(device):
            self._suitable.clear()
            self._kinds.clear()
        if slot is None:
            slot = self.slots[device.uuid] = Slot(device)
            for attempt in (*self.live.values(), *self.leaving.values()):
                self._hold(attempt, only=device.uuid)
            for job_id in self.claimants:
                if device.uuid in self.jobs[job_id].earmark:
                    slot.kept_for = job_id
        slot.device = device

    def put_job(self, job: Job, eligible: bool) -> None:
        """Take in a new or changed job. `eligible`: it waits for nothing but devices."""
        self._unqueue(job.id)
        old = self.jobs.get(job.id)
        if old is not None:
            self._count(old, -1)
            self._keep(old, None)
        self.jobs[job.id] = job
        self._count(job, +1)
        if eligible and job.earmark:
            self.claimants.add(job.id)
            self._claim(job, +1)
            self._keep(job, job.id)
        elif eligible:
            bucket = self.bucket(job)
            insort(self.buckets.setdefault(bucket, []), job.id)
            self._bucket_of[job.id] = bucket

    def drop_job(self, job_id: int) -> None:
        """Forget a job that has ended, or that was put in for a forecast only."""
        self._unqueue(job_id)
        job = self.jobs.pop(job_id, None)
        if job is not None and job.array is not None and not self._array_live[job.array.array_id]:
            del self._array_live[job.array.array_id], self._array_claims[job.array.array_id]

    def put_attempt(self, attempt: Attempt) -> None:
        for slot in self.slots.values():
            slot.holders.pop(attempt.key, None)
        if attempt.live:
            self.live[attempt.job_id] = attempt
        elif attempt.job_id in self.live and self.live[attempt.job_id].number == attempt.number:
            del self.live[attempt.job_id]
        if not attempt.live and not attempt.released:
            self.leaving[attempt.key] = attempt
        else:
            self.leaving.pop(attempt.key, None)
            self.overdue.discard(attempt.key)
        self._hold(attempt)

    # ---- what the policies ask ------------------------------------------------------------------------------

    def priority(self, job: Job) -> int:
        level = self.rules.qos.get(job.spec.qos)
        return level.priority if level else 0

    def order(self, job: Job) -> tuple[bool, int, int]:
        """Scheduling order: jobs that yielded last; then the level; then first come, first served (the id)."""
        return (job.yielding, -self.priority(job), job.id)

    def bucket(self, job: Job) -> Bucket:
        limited = job.array.array_id if job.array and job.array.limit else 0
        return Bucket(job.yielding, job.patient, job.spec.qos, job.spec.request, limited)

    def waiting(self) -> Iterator[Job]:
        """All jobs that wait for devices only, in no particular order."""
        for ids in self.buckets.values():
            for job_id in ids:
                yield self.jobs[job_id]
        for job_id in self.claimants:
            yield self.jobs[job_id]

    def array_full(self, job: Job) -> bool:
        """As many other elements of the job's array run, or have devices promised, as its %limit allows."""
        array = job.array
        if array is None or not array.limit:
            return False
        others = self._array_live[array.array_id] + self._array_claims[array.array_id]
        return others - (job.id in self.claimants) >= array.limit

    def departing(self, job: Job) -> list[Attempt]:
        """Attempts that will leave their devices to `job` by themselves: asked to stop, or ended and about to be seen
        gone. Not those whose owner asked for a requeue and who come back before `job`."""
        stopping = []
        for job_id, attempt in self.live.items():
            other = self.jobs[job_id]
            if other.stop is None or other.stop.kills >= _UNKILLABLE:
                continue
            if other.stop.kind is not StopKind.REQUEUE or self.order(job) < self.order(other):
                stopping.append(attempt)
        return [*stopping, *(a for key, a in self.leaving.items() if key not in self.overdue)]

    def suits(self, device: Device, request: Request) -> bool:
        """The device is of the asked kind and in the asked partition, whatever its present state."""
        partition = self.rules.partitions.get(request.partition)
        if partition is None or not partition.holds(device.index, device.uuid, device.name):
            return False
        if request.gpu_mem_mib is not None and device.total_mib < request.gpu_mem_mib:
            return False
        return request.gpu_type is None or _glob(device.name, request.gpu_type)

    def suitable(self, request: Request) -> Sequence[Slot]:
        """The devices of the asked kind, whatever their present state."""
        return self._look_up(request)[0]

    def kind(self, request: Request) -> frozenset[str]:
        """What a request competes for: the UUIDs of the devices of the asked kind, or the places of CPU-only jobs."""
        return self._look_up(request)[1]

    def _look_up(self, request: Request) -> tuple[list[Slot], frozenset[str]]:
        found = self._suitable.get(request)
        if found is None:
            if len(self._suitable) >= _REMEMBERED:
                self._suitable.clear()
            slots = [slot for slot in self.slots.values() if self.suits(slot.device, request)]
            kind = frozenset(slot.device.uuid for slot in slots) if request.gpus else frozenset({"cpu"})
            found = self._suitable[request] = (slots, self._kinds.setdefault(kind, kind))
        return found

    @contextmanager
    def without(self, attempts: Iterable[Attempt]) -> Iterator[None]:
        """See the devices as if these attempts had left them."""
        removed: list[tuple[Slot, AttemptKey, int | None]] = []
        for attempt in attempts:
            for share in attempt.held:
                slot = self.slots.get(share.uuid)
                if slot is not None and attempt.key in slot.holders:
                    removed.append((slot, attempt.key, slot.holders.pop(attempt.key)))
        try:
            yield
        finally:
            for slot, key, mem in removed:
                slot.holders[key] = mem

    # ---- bookkeeping ----------------------------------------------------------------------------------------

    def _hold(self, attempt: Attempt, only: str | None = None) -> None:
        for share in attempt.held:
            if share.uuid in self.slots and only in (None, share.uuid):
                self.slots[share.uuid].holders[attempt.key] = share.mem_mib

    def _keep(self, job: Job, for_job: int | None) -> None:
        for uuid in job.earmark:
            slot = self.slots.get(uuid)
            if slot is not None and slot.kept_for in (None, job.id):
                slot.kept_for = for_job

    def _unqueue(self, job_id: int) -> None:
        if job_id in self.claimants:
            self.claimants.discard(job_id)
            self._claim(self.jobs[job_id], -1)
        bucket = self._bucket_of.pop(job_id, None)
        if bucket is None:
            return
        ids = self.buckets[bucket]
        del ids[bisect_left(ids, job_id)]
        if not ids:
            del self.buckets[bucket]

    def _count(self, job: Job, by: int) -> None:
        if job.state not in LIVE:
            return
        if job.spec.request.gpus == 0:
            self.cpu_running += by
        if job.array is not None:
            self._array_live[job.array.array_id] += by


    def _claim(self, job: Job, by: int) -> None:
        if job.array is not None:
            self._array_claims[job.array.array_id] += by


def _identity(device: Device) -> tuple[int, str, int]:
    """What decides whether a device suits a request."""
    return device.index, device.name, device.total_mib


def _glob(name: str, pattern: str) -> bool:
    lowered = pattern.lower()
    # "h100" alone means "a name that contains it": nobody types "NVIDIA H100 80GB HBM3"
    return fnmatchcase(name.lower(), lowered if any(c in lowered for c in "*?[") else f"*{lowered}*")
