"""The rules an administrator sets: levels of service, partitions of the devices, and limits.

Plain values that the engine and the policies read. Where they come from (a file, a trace, a test) is no concern
of this module; `check` is the one place that says whether a set of rules makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from gpusched.model.errors import UsageError, known
from gpusched.model.limits import LimitRules
from gpusched.model.policy import PolicyRules

DEFAULT_PARTITION = "default"
DEFAULT_QOS = "normal"


class PreemptMode(StrEnum):
    """What becomes of a job of this level when it is preempted."""

    REQUEUE = "requeue"  # it saves, goes back to the queue and resumes
    CANCEL = "cancel"  # it saves and does not come back


@dataclass(frozen=True, slots=True)
class Qos:
    """One level of service. `mode` and `grace` are about jobs of this level as victims."""

    name: str
    priority: int  # higher goes first
    preempts: tuple[str, ...] = ()  # levels whose running jobs may be asked to leave for a job of this one
    mode: PreemptMode = PreemptMode.REQUEUE
    grace: float = 60.0  # seconds between the request to save and the kill


@dataclass(frozen=True, slots=True)
class Partition:
    """A named set of devices with limits on the jobs that use it.

    devices: each an index ("0"), a UUID or a glob on UUID or name ("NVIDIA H100*"); "*" is every device.
    max_time: seconds, per attempt; longer requests wait with PartitionTimeLimit. None: no limit.
    default_time: seconds, for jobs that give no time limit. None: `max_time`.
    """

    name: str
    devices: tuple[str, ...] = ("*",)
    max_time: float | None = None
    default_time: float | None = None

    def holds(self, index: int, uuid: str, name: str) -> bool:
        """Whether a device belongs to this partition. Name globs ignore case."""
        for pattern in self.devices:
            if pattern == "*" or pattern == str(index) or fnmatchcase(uuid, pattern):
                return True
            if not pattern.isdigit() and fnmatchcase(name.lower(), pattern.lower()):
                return True
        return False

    def time_limit(self, asked: float | None) -> float | None:
        """The time limit, in seconds, of a job that asked for this one (None: it did not say)."""
        if asked is not None:
            return asked
        return self.default_time if self.default_time is not None else self.max_time


def default_qos() -> dict[str, Qos]:
    """low, normal and high: each may preempt the ones below it."""
    return {
        "low": Qos("low", 0),
        "normal": Qos("normal", 100, ("low",)),
        "high": Qos("high", 1000, ("low", "normal")),
    }


def default_partitions() -> dict[str, Partition]:
    return {DEFAULT_PARTITION: Partition(DEFAULT_PARTITION)}


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that decisions depend on besides jobs, devices and time."""

    qos: Mapping[str, Qos] = field(default_factory=default_qos)
    partitions: Mapping[str, Partition] = field(default_factory=default_partitions)
    default_qos: str = DEFAULT_QOS
    default_partition: str = DEFAULT_PARTITION
    cpu_jobs: int = 8  # jobs with --gpus 0 that run at once; the shell puts the number of CPUs here
    foreign_floor_mib: int = 256  # a device with more memory than this in foreign use is not given away
    max_requeues: int = 5  # after lost attempts and failed launches; preemption does not count
    max_unasked_requeues: int = 5  # consecutive exits with 85 that nobody asked for and that saved nothing new
    bypass_limit: int = 100  # later jobs that may start before a job that waits for the devices they take
    max_array: int = 1_000_000  # elements of one array
    policy: PolicyRules = field(default_factory=PolicyRules)
    limits: LimitRules = field(default_factory=LimitRules)

    @classmethod
    def default(cls, cpu_jobs: int = 8) -> Rules:
        """The rules of a machine that nobody has configured."""
        return cls(cpu_jobs=cpu_jobs)

    def level(self, name: str) -> Qos:
        """The QoS of this name. Raises UsageError that lists the known ones."""
        if name not in self.qos:
            raise known("QoS", name, tuple(self.qos))
        return self.qos[name]

    def partition(self, name: str) -> Partition:
        """The partition of this name. Raises UsageError that lists the known ones."""
        if name not in self.partitions:
            raise known("partition", name, tuple(self.partitions))
        return self.partitions[name]

    def may_preempt(self, preemptor: str, victim: str) -> bool:
        """Whether jobs of one level may ask jobs of another to leave. Levels that are gone preempt nobody."""
        level = self.qos.get(preemptor)
        return level is not None and victim in level.preempts

    def check(self) -> Rules:
        """These rules, if they make sense. Raises UsageError that names what does not."""
        for level in self.qos.values():
            _check_preempts(level, self.qos)
        _check_no_cycle(self.qos)
        self.level(self.default_qos)
        self.partition(self.default_partition)
        for partition in self.partitions.values():
            _check_times(partition)
        self.policy.check()
        self.limits.check(self.qos, self.partitions)
        return self


def _check_preempts(level: Qos, levels: Mapping[str, Qos]) -> None:
    for victim in level.preempts:
        if victim not in levels:
            error = known("QoS", victim, tuple(levels))
            raise UsageError(f"QoS {level.name!r} preempts the {error.message}", error.hint)
    if len(set(level.preempts)) != len(level.preempts):
        raise UsageError(f"QoS {level.name!r} names a level twice in preempts", "name each level once")


def _check_no_cycle(levels: Mapping[str, Qos]) -> None:
    """Two levels that preempt each other, over however many steps, would take the device from each other for ever."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            ring = " → ".join((*path[path.index(name) :], name))
            raise UsageError(
                f"QoS levels preempt each other in a circle: {ring}", "remove one of them from the other's preempts"
            )
        if name not in done:
            for victim in levels[name].preempts:
                visit(victim, (*path, name))
            done.add(name)

    for name in levels:
        visit(name, ())


def _check_times(partition: Partition) -> None:
    longest, usual = partition.max_time, partition.default_time
    if longest is not None and usual is not None and usual > longest:
        raise UsageError(
            f"partition {partition.name!r}: default_time is longer than max_time",
            "give a default_time of at most max_time",
        )
