"""A device as a probe reads it, and as the engine knows it. Memory is integer MiB, power watts, utilisation percent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpusched.model.evolve import swift


class Health(StrEnum):
    OK = "ok"
    FAILED = "failed"  # lost, fallen off the bus, or its identity cannot be read
    MISSING = "missing"  # known before, not enumerated now


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory on a device. `used_mib` is None where the driver does not tell."""

    pid: int
    used_mib: int | None = None


@swift
@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One reading of one device. Identity and memory matter for scheduling; every other value may be None."""

    uuid: str
    index: int
    name: str
    total_mib: int
    used_mib: int
    processes: tuple[DeviceProcess, ...] = ()
    processes_known: bool = True  # False: this driver or card cannot list them
    utilization: int | None = None  # percent, 0-100
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    pci_bus_id: str | None = None
    group: str = ""  # devices of one group have a fast link between them (NVLink island, NUMA node, node); "": unknown
    health: Health = Health.OK
    fault: str = ""  # in words, when health is not OK


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """All devices at one moment. With `error` the probe could not answer, and `devices` is what it last knew."""

    devices: tuple[DeviceReading, ...] = ()
    driver: str | None = None  # driver version
    error: str | None = None  # a sentence with what to do


@swift
@dataclass(frozen=True, slots=True)
class Occupancy:
    """What the shell found on one device after telling its own attempts' processes from everybody else's."""

    reading: DeviceReading
    own: tuple[tuple[int, int], ...] = ()  # (job id, attempt number) of attempts with processes there
    own_mib: tuple[tuple[tuple[int, int], int], ...] = ()  # the same with the memory that they use there
    foreign_mib: int = 0  # memory held by processes that gpusched did not start
    foreign_pids: tuple[int, ...] = ()
    residual_mib: int = 0  # memory in use that no visible process explains


@swift
@dataclass(frozen=True, slots=True)
class Device:
    """A device as the engine knows it: the last facts that matter for placement."""

    uuid: str
    index: int
    name: str
    total_mib: int
    health: Health = Health.OK
    fault: str = ""
    foreign_mib: int = 0
    stale: bool = False  # the probe has stopped answering: nothing new starts here
    drained: str = ""  # the administrator's reason; empty: not drained
    group: str = ""  # gangs are packed into one group where there is room

    @property
    def usable(self) -> bool:
        return self.health is Health.OK and not self.stale and not self.drained
