"""What a small world is made of: devices, processes, people and specs. tests/builders.py puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpusched.model.actions import Ask
from gpusched.model.dependency import parse_dependency
from gpusched.model.device import DeviceReading, Health, Occupancy
from gpusched.model.job import AttemptKey, Caller, JobSpec, Request, Share
from gpusched.model.state import Outcome, Saved

GIB = 1024
PEOPLE = {
    "ann": Caller(1001, 1001, "ann"),
    "bob": Caller(1002, 1002, "bob"),
    "root": Caller(0, 0, "root", admin=True),
}
SPEC_FIELDS = (
    "name", "qos", "account", "nice", "expected", "time_limit", "warn", "begin", "cron", "grace", "requeue",
    "max_requeues", "cancel_on_bad_dependency",
)  # fmt: skip
REQUEST_FIELDS = ("gpus", "gpu_mem_mib", "shared", "gpu_type", "partition", "gpus_max", "gpu_counts", "reservation")


@dataclass
class Gpu:
    """What is true of one device."""

    index: int
    name: str = "NVIDIA RTX 4090"
    total_mib: int = 24 * GIB
    foreign_mib: int = 0
    residual_mib: int = 0
    fault: str = ""
    missing: bool = False
    group: str = ""  # devices with a fast link between them

    @property
    def uuid(self) -> str:
        return f"GPU-{self.index}"

    def occupancy(self, processes: Mapping[AttemptKey, Process]) -> Occupancy:
        """What a sample shows of this device."""
        own = tuple(key for key, process in processes.items() if self.uuid in process.on and not self.fault)
        health = Health.FAILED if self.fault else Health.OK
        reading = DeviceReading(
            self.uuid, self.index, self.name, self.total_mib, 0, group=self.group, health=health, fault=self.fault
        )
        return Occupancy(reading, own, foreign_mib=self.foreign_mib, residual_mib=self.residual_mib)


@dataclass
class Process:
    """What is true of one attempt: it was launched, so it exists, whatever the engine knows of it."""

    shares: tuple[Share, ...]
    started: bool = False
    watching: bool = False
    saved: Saved | None = None
    outcome: Outcome | None = None  # exit.json
    asked: list[Ask] = field(default_factory=list)
    killed: int = 0
    on: set[str] = field(default_factory=set)  # devices on which memory of it is still to be seen

    @property
    def alive(self) -> bool:
        return self.outcome is None

    @property
    def clear(self) -> tuple[str, ...]:
        """Its devices on which nothing of it is left."""
        return tuple(share.uuid for share in self.shares if share.uuid not in self.on)


def may_start(processes: Mapping[AttemptKey, Process], key: AttemptKey, shares: tuple[Share, ...]) -> None:
    """Raises AssertionError if the attempt exists already, or starts beside another of its job or on a taken device."""
    assert key not in processes, f"attempt {key} is launched a second time"
    for other, process in processes.items():
        assert not (process.alive and other.job_id == key.job_id), f"{key} starts while {other} lives"
        for share in shares:
            theirs = [s for s in process.shares if s.uuid == share.uuid and (process.alive or s.uuid in process.on)]
            both_share = share.mem_mib is not None and all(s.mem_mib is not None for s in theirs)
            assert not theirs or both_share, f"{share.uuid} is given to {key} while {other} is there"


def gpu(index: int, name: str = "NVIDIA RTX 4090", gib: int = 24) -> Gpu:
    return Gpu(index, name, gib * GIB)


def spec(**wanted: Any) -> JobSpec:
    """A job's spec from the flat names that `submit` takes. `after` is the text of a dependency."""
    after = wanted.pop("after", None)
    request = Request(**{name: wanted.pop(name) for name in REQUEST_FIELDS if name in wanted})
    fields = {name: wanted.pop(name) for name in SPEC_FIELDS if name in wanted}
    assert not wanted, f"unknown: {wanted}"
    dependency = parse_dependency(after) if after else None
    return JobSpec(("train",), "/home/ann", request=request, dependency=dependency, **fields)
