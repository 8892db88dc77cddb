"""Which devices a new reservation gets: those that are named, or so many of those that become free first."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from gpusched.model.clock import Instant
from gpusched.model.errors import Refused, UsageError
from gpusched.model.evolve import evolve
from gpusched.model.reservation import Reservation, clash
from gpusched.policy.expected import remaining
from gpusched.policy.holdings import Slot
from gpusched.policy.view import View


def named(view: View, words: Iterable[str]) -> list[Slot]:
    """The devices of these indexes or UUIDs, each once. Raises UsageError that lists the known ones."""
    by_word = {str(slot.device.index): slot for slot in view.slots.values()} | view.slots
    slots: dict[str, Slot] = {}
    for word in words:
        if word not in by_word:
            indexes = ", ".join(str(slot.device.index) for slot in _in_order(view.slots.values()))
            raise UsageError(f"there is no device {word!r}", f"devices: {indexes or 'none'} (or their UUIDs)")
        slots[by_word[word].device.uuid] = by_word[word]
    return _in_order(slots.values())


def chosen(view: View, draft: Reservation, count: int, gpu_type: str | None, now: Instant) -> list[Slot]:
    """The devices that become free first, in one group where that makes nobody more leave.

    gpu_type: a glob on the device's name. Raises UsageError if there are not so many, Refused if they are not usable
    or reserved for others at that time.
    """
    glob = (gpu_type or "*").lower()
    kind = [slot for slot in view.slots.values() if fnmatchcase(slot.device.name.lower(), glob)]
    if len(kind) < count:
        what = f" of type {gpu_type!r}" if gpu_type else ""
        are = f"{len(kind)} device{'' if len(kind) == 1 else 's'}{what}"
        raise UsageError(f"this machine has {are}, not {count}", "ask for fewer, or see: gpusched gpus")
    able = [s for s in kind if s.device.usable and clashing(view, evolve(draft, devices=(s.device.uuid,))) is None]
    if len(able) < count:
        raise Refused(
            f"at that time only {len(able)} of {len(kind)} devices are usable and not reserved",
            "choose another time or fewer devices; see: gpusched admin reservations",
        )
    free_at = {slot.device.uuid: _free_at(view, slot, now) for slot in able}

    def first_free(slots: Iterable[Slot]) -> list[Slot]:
        return sorted(slots, key=lambda s: (free_at[s.device.uuid], s.device.index, s.device.uuid))[:count]

    def in_use(slots: Iterable[Slot]) -> int:
        return sum(free_at[slot.device.uuid] > draft.start for slot in slots)

    best = first_free(able)
    for group in sorted({slot.device.group for slot in able} - {""}):
        together = first_free(slot for slot in able if slot.device.group == group)
        if len(together) == count and in_use(together) == in_use(best):
            return _in_order(together)
    return _in_order(best)


def clashing(view: View, reservation: Reservation) -> Reservation | None:
    """Another reservation that has a device of this one at the same time."""
    return next((other for other in view.reservations.values() if clash(reservation, other) is not None), None)


def described(slots: list[Slot]) -> str:
    """`device 0 is`, `devices 0,1 are`."""
    many = len(slots) > 1
    return f"device{'s' if many else ''} {','.join(str(s.device.index) for s in slots)} {'are' if many else 'is'}"


def _in_order(slots: Iterable[Slot]) -> list[Slot]:
    return sorted(slots, key=lambda slot: (slot.device.index, slot.device.uuid))


def _free_at(view: View, slot: Slot, now: Instant) -> float:
    """When (wall clock) its holders are expected to have left; infinite if nobody knows."""
    latest = now.wall
    for key in slot.holders:
        job = view.jobs.get(key.job_id)
        if job is None or job.stop is not None or key in view.leaving:
            continue  # about to be gone
        left = remaining(view, job, now)
        latest = max(latest, float("inf") if left is None else now.wall + left)
    return latest
