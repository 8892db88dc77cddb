"""Whose memory is on a device: tells the processes of our own attempts from everybody else's.

A device process belongs to an attempt if one of its ancestors is the attempt's supervisor, or else if its environment
carries the attempt's mark (a double fork loses the ancestor but hardly the mark). What is known once is kept for the
life of the process, so that it stays the attempt's when its ancestors end before it. It signals nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from gpusched import rundir
from gpusched.devices import proc
from gpusched.devices.simulated_spec import PREFIX
from gpusched.model.device import DeviceProcess, DeviceReading, Health, Occupancy, ProbeSample
from gpusched.model.job import AttemptKey

FLOOR_MIB = 600
_YOUNG = 10.0  # seconds; a younger process may not have exec'd into its own environment yet
_LONGEST_ANCESTRY = 512


@dataclass(frozen=True, slots=True)
class _Owner:
    """What was found out about a process. `attempt` None: a stranger."""

    start: int
    attempt: AttemptKey | None


class Attributor:
    """Remembers whose each process is between samples. Used from one thread."""

    def __init__(self, floor_mib: int = FLOOR_MIB) -> None:
        """`floor_mib`: memory that the driver and contexts may hold on a real device with no process to explain it."""
        self._floor = floor_mib
        self._owners: dict[int, _Owner] = {}
        self._asked: tuple[frozenset[int], frozenset[str]] = (frozenset(), frozenset())

    def attribute(
        self,
        sample: ProbeSample,
        supervisors: Mapping[int, AttemptKey],
        marks: Mapping[str, AttemptKey],
    ) -> tuple[Occupancy, ...]:
        """One Occupancy per reading. `supervisors` by pid and `marks` (ENV_MARK's value) of all attempts that still run
        or leave: a process of theirs is never foreign."""
        asked = (frozenset(supervisors), frozenset(marks))
        if asked != self._asked:  # who was a stranger may be known now
            self._owners = {pid: owner for pid, owner in self._owners.items() if owner.attempt is not None}
            self._asked = asked
        alive = {*supervisors.values(), *marks.values()}
        whose: dict[int, AttemptKey | bool] = {}
        for reading in sample.devices:
            for process in reading.processes:
                if process.pid not in whose:
                    whose[process.pid] = self._whose(process.pid, supervisors, marks, alive)
        self._owners = {pid: owner for pid, owner in self._owners.items() if pid in whose}
        return tuple(_occupancy(reading, whose, self._floor_of(reading)) for reading in sample.devices)

    def _whose(
        self, pid: int, supervisors: Mapping[int, AttemptKey], marks: Mapping[str, AttemptKey], alive: set[AttemptKey]
    ) -> AttemptKey | bool:
        """The attempt; True: somebody else's; False: there is no such process (any more), so it explains nothing."""
        if pid >= proc.NO_REAL_PID:
            return True
        found = proc.stat(pid)
        known = self._owners.get(pid)
        if found is None:
            if known is not None and known.attempt in alive:
                return known.attempt
            return proc.exists(pid)
        if known is not None and known.start == found.start and (known.attempt is None or known.attempt in alive):
            return known.attempt or True
        attempt = _ancestral(pid, found, supervisors) or _marked(pid, marks)
        if attempt is not None or proc.age(found, time.clock_gettime(time.CLOCK_BOOTTIME)) >= _YOUNG:
            self._owners[pid] = _Owner(found.start, attempt)
        else:
            self._owners.pop(pid, None)
        return attempt or True

    def _floor_of(self, reading: DeviceReading) -> int:
        return 0 if reading.uuid.startswith(PREFIX) else self._floor


def _ancestral(pid: int, found: proc.Stat, supervisors: Mapping[int, AttemptKey]) -> AttemptKey | None:
    at: proc.Stat | None = found
    for _ in range(_LONGEST_ANCESTRY):
        if pid in supervisors:
            return supervisors[pid]
        if at is None or at.parent <= 1:
            return supervisors.get(at.parent) if at is not None else None
        pid, at = at.parent, proc.stat(at.parent)
    return None


def _marked(pid: int, marks: Mapping[str, AttemptKey]) -> AttemptKey | None:
    mark = proc.variable(proc.environment(pid) or b"", rundir.ENV_MARK) if marks else None
    return None if mark is None else marks.get(mark)


def _occupancy(reading: DeviceReading, whose: Mapping[int, AttemptKey | bool], floor: int) -> Occupancy:
    """Add up one device. Memory that the driver does not break down is put down to a stranger if there is one."""
    if reading.health is not Health.OK:
        return Occupancy(reading)
    if not reading.processes_known:
        return Occupancy(reading, residual_mib=max(0, reading.used_mib - floor))
    own: dict[AttemptKey, int] = {}
    strangers: list[DeviceProcess] = []
    explained = 0
    all_told = True
    for process in reading.processes:
        owner = whose[process.pid]
        if owner is False:
            continue
        if owner is True:
            strangers.append(process)
        else:
            assert isinstance(owner, AttemptKey)
            own[owner] = own.get(owner, 0) + (process.used_mib or 0)
        explained += process.used_mib or 0
        all_told = all_told and process.used_mib is not None
    rest = max(0, reading.used_mib - explained - floor)
    foreign = sum(process.used_mib or 0 for process in strangers)
    if not all_told:
        if any(process.used_mib is None for process in strangers):
            foreign += max(1, rest)
        rest = 0
    return Occupancy(
        reading=reading,
        own=tuple(sorted((attempt.job_id, attempt.number) for attempt in own)),
        own_mib=tuple(sorted(((attempt.job_id, attempt.number), mib) for attempt, mib in own.items())),
        foreign_mib=foreign,
        foreign_pids=tuple(process.pid for process in strangers),
        residual_mib=rest,
    )
