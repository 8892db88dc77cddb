"""Which real processes hold which simulated devices: those whose CUDA_VISIBLE_DEVICES names the device's uuid.

This runs each second beside an otherwise idle daemon, so it asks /proc as little as the truth allows:
 1. the list of pids is read at each scan; a pid never seen before is examined (owner, stat, environ);
 2. a process that holds nothing may yet exec a program that does. A freshly forked child shows its parent's environment
    until its exec, so for the first ten seconds of its life it is examined at each scan;
 3. an older one is examined again every ten to twenty seconds, in turn (a shell script may sleep and exec late);
 4. a process that holds a device is looked at in each scan: a zombie holds nothing, another start time is another
    process under the same pid, and another place of its environment means that it exec'd and must be examined again.
Kernel threads and other people's processes hold nothing (unless we are root), nor does the daemon itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass

from gpusched.devices import proc

_YOUNG = 10.0  # seconds
_LATER = 10.0
_MUCH_LATER = 60.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A process on one or more simulated devices."""

    pid: int
    start: int  # clock ticks since boot
    cpu: int  # clock ticks of CPU time so far
    age: float  # seconds
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last look at a process said."""

    start: int
    image: int
    devices: tuple[str, ...]
    look_again: float


class Holders:
    """Remembers what it has seen, so that a scan is cheap. Not for several threads at once."""

    def __init__(self, uuids: Collection[str]) -> None:
        self._uuids = frozenset(uuids)
        self._uid = os.geteuid()
        self._ours = os.getpid()
        self._seen: dict[int, _Seen] = {}

    def scan(self) -> tuple[Holder, ...]:
        """All processes that hold one of the devices now, by pid."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        before, self._seen = self._seen, {}
        holders: list[Holder] = []
        for pid in proc.pids():
            seen = before.get(pid)
            if seen is not None and not seen.devices and now < seen.look_again:
                self._seen[pid] = seen
                continue
            found = proc.stat(pid)
            if found is None or pid == self._ours:
                continue
            if seen is None or not seen.devices or (seen.start, seen.image) != (found.start, found.image):
                seen = self._examine(pid, found, now)
            self._seen[pid] = seen
            if seen.devices and not found.zombie:
                holders.append(Holder(pid, found.start, found.cpu, proc.age(found, now), seen.devices))
        return tuple(holders)

    def _examine(self, pid: int, found: proc.Stat, now: float) -> _Seen:
        if found.kernel:
            return _Seen(found.start, found.image, (), now + _MUCH_LATER + pid % 61)
        devices: tuple[str, ...] = ()
        if self._uid == 0 or proc.owner(pid) == self._uid:
            value = proc.variable(proc.environment(pid) or b"", "CUDA_VISIBLE_DEVICES") or ""
            if "SIM-" in value:
                named = dict.fromkeys(part.strip() for part in value.split(","))
                devices = tuple(uuid for uuid in named if uuid in self._uuids)
        # Old ones take turns (by pid), so that no scan examines them all at once.
        again = now if proc.age(found, now) < _YOUNG else now + _LATER + pid % 11
        return _Seen(found.start, found.image, devices, again)


class HeldMemory:
    """How much memory processes have: PSS where it can be read, else RSS. Used from one thread.

    PSS costs the kernel a walk over the page tables (10 ms for a PyTorch process), so it is kept while the resident
    size stays the same within 1.6 %, for ten seconds at most.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, int, float]] = {}

    def of(self, holders: Collection[Holder]) -> dict[int, int]:
        """Bytes by pid; a process that ended meanwhile has none. May take long if the kernel is busy with one."""
        now = time.monotonic()
        memory: dict[int, int] = {}
        kept: dict[tuple[int, int], tuple[int, int, float]] = {}
        for holder in holders:
            key = (holder.pid, holder.start)
            resident = proc.resident(holder.pid)
            known = self._known.get(key)
            if known is None or abs(resident - known[0]) * 64 > known[0] or now - known[2] > _LATER:
                size = proc.proportional(holder.pid)
                known = (resident, resident if size is None else size, now)
            kept[key] = known
            memory[holder.pid] = known[1] if resident else 0
        self._known = {key: value for key, value in self._known.items() if now - value[2] <= _LATER} | kept
        return memory
