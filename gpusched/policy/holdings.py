"""Devices and who holds them: which suit a request, which are open, and what would be open if somebody left.

Policies may lift victims off their devices and put them back (`with view.without(victims):`) to see what would fit;
nothing is ever copied whole. It must not know queues or ranks: policy/view.py does.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gpusched.model.device import Device
from gpusched.model.job import Attempt, AttemptKey, Request, Share
from gpusched.model.reservation import Reservation
from gpusched.model.rules import Rules
from gpusched.policy.pool import Member, Pool

_REMEMBERED = 20_000  # different requests for which the suitable devices are remembered

Lifted = list[tuple["Slot", AttemptKey, int | None]]


@dataclass(slots=True)
class Slot:
    """One device with its holders (None: the whole device; a number: that many MiB of it) and who it is kept for."""

    device: Device
    whole: Share  # all of it, for all who have it one after the other
    holders: dict[AttemptKey, int | None] = field(default_factory=dict)
    kept_for: int | None = None  # the preemptor that victims are leaving it to
    guarded: bool = False  # while a decision is being tried out: somebody else gets it
    able: bool = False  # usable, and not in foreign use
    open: bool = False  # able, whole, free and kept for nobody: what the pools count
    partly: bool = False  # not open, but perhaps with memory for one more who shares
    pools: list[Pool] = field(default_factory=list)

    @property
    def shared_mib(self) -> int:
        return sum(share or 0 for share in self.holders.values())

    @property
    def exclusive(self) -> bool:
        return None in self.holders.values()


Suitable = tuple[list[Slot], frozenset[str], Pool]  # by index; their UUIDs; the open ones of them


class Holdings:
    """All devices with their holders, and pools of the open ones."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.slots: dict[str, Slot] = {}
        self.reservations: dict[str, Reservation] = {}  # by name: those that are active or to come
        self.open_devices = 0
        self.partly_open = 0
        self._suitable: dict[Request, Suitable] = {}
        self._alike: dict[tuple[object, ...], Suitable] = {}
        self._kinds: dict[frozenset[str], tuple[frozenset[str], Pool]] = {}  # one object for each set of devices

    def take_in(self, device: Device) -> Slot:
        """A new or changed device. Its holders are for the caller to tell."""
        slot = self.slots.get(device.uuid)
        if slot is None or _identity(slot.device) != _identity(device):
            self.forget_pools()
        if slot is None:
            slot = self.slots[device.uuid] = Slot(device, Share(device.uuid))
        slot.device = device
        able = device.usable and device.foreign_mib <= self.rules.foreign_floor_mib
        if able is not slot.able:
            slot.able = able
            for pool in slot.pools:
                pool.enable(device.uuid, 1 if able else -1)
        self.refresh(slot)
        return slot

    # ---- what suits whom -------------------------------------------------------------------------------------

    def suits(self, device: Device, request: Request) -> bool:
        """The device is of the asked kind and in the asked partition, whatever its present state."""
        partition = self.rules.partitions.get(request.partition)
        if partition is None or not partition.holds(device.index, device.uuid, device.name):
            return False
        if request.gpu_mem_mib is not None and device.total_mib < request.gpu_mem_mib:
            return False
        if request.gpu_type is not None and not _glob(device.name, request.gpu_type):
            return False
        kept = self.reservations.get(request.reservation) if request.reservation else None
        return kept is None or device.uuid in kept.devices

    def suitable(self, request: Request) -> Sequence[Slot]:
        """The devices of the asked kind, whatever their present state, by index."""
        return self._look_up(request)[0]

    def kind(self, request: Request) -> frozenset[str]:
        """What a request competes for: the UUIDs of the devices of the asked kind, or the places of CPU-only jobs."""
        return self._look_up(request)[1]

    def pool(self, request: Request) -> Pool:
        """The open devices of the asked kind."""
        return self._look_up(request)[2]

    def _look_up(self, request: Request) -> Suitable:
        found = self._suitable.get(request)
        if found is None:
            if len(self._suitable) >= _REMEMBERED:
                self._suitable.clear()
            found = self._suitable[request] = self._find(request)
        return found

    def _find(self, request: Request) -> Suitable:
        """Requests that differ in their numbers only have the same devices."""
        alike = (request.gpu_mem_mib, request.gpu_type, request.partition, request.reservation, request.gpus > 0)
        found = self._alike.get(alike)
        if found is None:
            slots = [slot for slot in self.slots.values() if self.suits(slot.device, request)]
            slots.sort(key=lambda slot: (slot.device.index, slot.device.uuid))
            kind = frozenset([slot.device.uuid for slot in slots]) if request.gpus else frozenset({"cpu"})
            if kind not in self._kinds:
                self._kinds[kind] = (kind, self._make_pool(slots if request.gpus else []))
            if len(self._alike) >= _REMEMBERED:
                self._alike.clear()
            found = self._alike[alike] = (slots, *self._kinds[kind])
        return found

    # ---- what would be --------------------------------------------------------------------------------------

    def lift(self, attempt: Attempt, lifted: Lifted, only: Container[str] | None = None) -> None:
        """See the devices as if this attempt had left them (or `only` these), until `put_back(lifted)`."""
        key = attempt.key
        for share in attempt.held:
            slot = self.slots.get(share.uuid)
            if slot is not None and key in slot.holders and (only is None or share.uuid in only):
                lifted.append((slot, key, slot.holders[key]))
                self.let_go(share.uuid, key)

    def put_back(self, lifted: Lifted) -> None:
        while lifted:
            slot, key, mem = lifted.pop()
            slot.holders[key] = mem
            self.refresh(slot)

    @contextmanager
    def without(self, attempts: Iterable[Attempt]) -> Iterator[None]:
        """See the devices as if these attempts had left them."""
        lifted: Lifted = []
        try:
            for attempt in attempts:
                self.lift(attempt, lifted)
            yield
        finally:
            self.put_back(lifted)

    def guard(self, uuids: Iterable[str]) -> None:
        """See these devices as not open, until `unguard`: a decision about them is being tried out."""
        for uuid in uuids:
            self.slots[uuid].guarded = True
            self.refresh(self.slots[uuid])

    def unguard(self, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            self.slots[uuid].guarded = False
            self.refresh(self.slots[uuid])

    # ---- bookkeeping ----------------------------------------------------------------------------------------

    def _make_pool(self, slots: Sequence[Slot]) -> Pool:
        members = [Member(slot.device.uuid, slot.device.group, slot.device.total_mib) for slot in slots]
        pool = Pool(members, self.rules.policy.placement)
        for slot in slots:
            slot.pools.append(pool)
            if slot.able:
                pool.enable(slot.device.uuid, 1)
            if slot.open:
                pool.flip(slot.device.uuid, True)
        return pool

    def forget_pools(self) -> None:
        """What suits whom has changed."""
        if not self._kinds:
            return
        self._suitable.clear()
        self._alike.clear()
        self._kinds.clear()
        for slot in self.slots.values():
            slot.pools.clear()

    def refresh(self, slot: Slot) -> None:
        """Count a device anew of which holders, guards or promises have changed."""
        is_open = partly = False
        holders = slot.holders
        if slot.kept_for is None:
            if holders:
                partly = None not in holders.values() and slot.device.usable
            else:
                is_open = slot.able and not slot.guarded
                partly = not is_open and slot.device.usable
        if partly is not slot.partly:
            slot.partly = partly
            self.partly_open += 1 if partly else -1
        if is_open is not slot.open:
            slot.open = is_open
            self.open_devices += 1 if is_open else -1
            for pool in slot.pools:
                pool.flip(slot.device.uuid, is_open)

    def hold(self, attempt: Attempt, key: AttemptKey, only: str | None = None) -> None:
        """The attempt, whose key this is, holds its devices (or this one of them)."""
        for share in attempt.held:
            slot = self.slots.get(share.uuid)
            if slot is not None and (only is None or only == share.uuid):
                slot.holders[key] = share.mem_mib
                self.refresh(slot)

    def let_go(self, uuid: str, key: AttemptKey) -> None:
        slot = self.slots.get(uuid)
        if slot is None or key not in slot.holders:
            return
        del slot.holders[key]
        self.refresh(slot)


def _identity(device: Device) -> tuple[int, str, int, str]:
    """What decides whether a device suits a request, and where in its pool it stands."""
    return device.index, device.name, device.total_mib, device.group


def _glob(name: str, pattern: str) -> bool:
    lowered = pattern.lower()
    # "h100" alone means "a name that contains it": nobody types "NVIDIA H100 80GB HBM3"
    return fnmatchcase(name.lower(), lowered if any(c in lowered for c in "*?[") else f"*{lowered}*")
