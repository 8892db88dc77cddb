"""Hard limits and quotas: what an administrator allows a user, group, account, QoS level or partition to have.

Plain values, as the configuration or a test gives them. How much of them is used is counted in policy/usage.py, what
follows from it is decided in policy/limits.py and policy/rights.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple

from gpusched.model.errors import UsageError, known
from gpusched.model.job import Job

EVERYONE = "*"  # each user (or account) that has no section of its own
WHOLE = 1_000_000  # parts of one device: use is counted in whole parts, so that sums stay exact


class Kind(StrEnum):
    """What a limit can be set for."""

    USER = "user"
    GROUP = "group"  # the primary unix group of the submitter
    ACCOUNT = "account"
    QOS = "qos"
    PARTITION = "partition"


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that all jobs of one user (group, …) together, or one of them, may have. None: no limit.

    The `_per_user` ones hold for each user within a group, account, level or partition.
    """

    max_devices: float | None = None  # in use at once; a sharing job counts with its share of the device's memory
    max_running: int | None = None  # jobs that run at once
    max_jobs: int | None = None  # jobs that wait or run
    max_job_devices: int | None = None  # devices of one job
    max_time: float | None = None  # seconds: the longest time limit
    max_devices_per_user: float | None = None
    max_running_per_user: int | None = None
    max_jobs_per_user: int | None = None
    users: tuple[str, ...] | None = None  # of an account: who may submit jobs to it; None: everybody

    @property
    def per_user(self) -> Limits:
        """What holds for each user inside, written as limits of that user."""
        return Limits(self.max_devices_per_user, self.max_running_per_user, self.max_jobs_per_user)

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


class Scope(NamedTuple):
    """Whose use is counted together: everybody's in (kind, name), or only that of one `user` in it."""

    kind: Kind
    name: str
    user: str = ""

    def __str__(self) -> str:
        """As messages call it: `user ann`, `account vision`, `ann in QoS high`."""
        whose = f"{'QoS' if self.kind is Kind.QOS else self.kind} {self.name}"
        return f"{self.user} in {whose}" if self.user else whose


@dataclass(frozen=True, slots=True)
class LimitRules:
    """All limits by name, and the quotas of accounts in devices. "*" stands for each user (account) not named."""

    user: Mapping[str, Limits] = field(default_factory=dict)
    group: Mapping[str, Limits] = field(default_factory=dict)
    account: Mapping[str, Limits] = field(default_factory=dict)
    qos: Mapping[str, Limits] = field(default_factory=dict)
    partition: Mapping[str, Limits] = field(default_factory=dict)
    gids: Mapping[int, str] = field(default_factory=dict)  # the groups above, by their number
    quota: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.user or self.group or self.account or self.qos or self.partition or self.quota)

    def of(self, kind: Kind) -> Mapping[str, Limits]:
        found: Mapping[str, Limits] = getattr(self, kind.value)
        return found

    def section(self, scope: Scope) -> str:
        """The section of the configuration that limits this scope: `limits.user.ann`."""
        name = scope.name if scope.name in self.of(scope.kind) else EVERYONE
        return f'limits.{scope.kind}."{name}"' if name == EVERYONE else f"limits.{scope.kind}.{name}"

    def quota_of(self, account: str) -> float | None:
        """Devices that the account may use as of right; None: quotas say nothing about it."""
        return self.quota.get(account, self.quota.get(EVERYONE))

    def scopes(self, job: Job) -> Iterator[tuple[Scope, Limits]]:
        """Everything that limits this job, users first."""
        owner, spec = job.owner, job.spec
        names = {
            Kind.USER: owner.user,
            Kind.GROUP: self.gids.get(owner.gid),
            Kind.ACCOUNT: job.account,
            Kind.QOS: spec.qos,
            Kind.PARTITION: spec.request.partition,
        }
        for kind, name in names.items():
            limits = self.of(kind).get(name or "", self.of(kind).get(EVERYONE)) if name is not None else None
            if limits is None or name is None:
                continue
            yield Scope(kind, name), limits
            if kind is not Kind.USER and limits.per_user:
                yield Scope(kind, name, owner.user), limits.per_user

    def check(self, levels: Collection[str], partitions: Collection[str]) -> None:
        """Raises UsageError that names what makes no sense: the message begins with the section."""
        for kind in Kind:
            for name, limits in self.of(kind).items():
                self._check_name(kind, name, levels, partitions)
                _check_values(f"limits.{kind}.{name}", kind, limits)
        missing = sorted(set(self.group) - set(self.gids.values()))
        if missing:
            raise UsageError(f"limits.group.{missing[0]}: there is no such group here", "see: getent group")
        for account, devices in self.quota.items():
            if devices < 0:
                raise UsageError(f"quota.account.{account}: devices cannot be negative", "0: nothing is its right")

    @staticmethod
    def _check_name(kind: Kind, name: str, levels: Collection[str], partitions: Collection[str]) -> None:
        names = {Kind.QOS: ("QoS", levels), Kind.PARTITION: ("partition", partitions)}
        if kind in names and name not in names[kind][1]:
            error = known(names[kind][0], name, tuple(names[kind][1]))
            raise UsageError(f"limits.{kind}.{name}: {error.message}", error.hint)
        if name == EVERYONE and kind is Kind.GROUP:
            raise UsageError('limits.group.*: "*" is not a group', 'name the groups, or use limits.user."*"')


def _check_values(section: str, kind: Kind, limits: Limits) -> None:
    for each in fields(limits):
        value = getattr(limits, each.name)
        if each.name != "users" and value is not None and value < 0:
            raise UsageError(f"{section}: {each.name} cannot be negative", "0 allows none; leave it out for no limit")
    if limits.max_time == 0:
        raise UsageError(f"{section}: max_time must be more than nothing", 'for example "2:00:00"')
    if limits.users is not None and (kind is not Kind.ACCOUNT or section.endswith(f".{EVERYONE}")):
        raise UsageError(f"{section}: users belong to an account with a name", "write them in [limits.account.NAME]")
    if kind is Kind.USER and limits.per_user:
        raise UsageError(f"{section}: this is about one user", "write max_devices instead of max_devices_per_user")


def parts(devices: float) -> int:
    """Devices as parts, to compare with what is counted."""
    return round(devices * WHOLE)
