"""The sections [limits.…] and [quota.…] of the configuration, and the rules that they become.

A named user (account) has what its own section says; for what that does not say, the section "*" holds. Groups are
looked up here, once, when the daemon starts: decisions know their numbers only.
"""

from __future__ import annotations

import grp
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gpusched.daemon.config_values import Names, Section, TimeLimit
from gpusched.model.limits import EVERYONE, LimitRules, Limits


def _no_limit(value: Any) -> Any:
    """`"unlimited"` lifts what the section "*" says."""
    if isinstance(value, str) and value.strip().lower() in ("unlimited", "none"):
        return None
    return value


Count = Annotated[Annotated[int, Field(ge=0, le=1_000_000)] | None, BeforeValidator(_no_limit)]
Devices = Annotated[Annotated[float, Field(ge=0, le=1_000_000)] | None, BeforeValidator(_no_limit)]


class UserLimits(Section):
    """[limits.user.NAME]"""

    max_devices: Devices = None
    max_running: Count = None
    max_jobs: Count = None
    max_job_devices: Count = None
    max_time: TimeLimit = None


class SharedLimits(UserLimits):
    """[limits.group.NAME] and the others, in which there are several users."""

    max_devices_per_user: Devices = None
    max_running_per_user: Count = None
    max_jobs_per_user: Count = None


class AccountLimits(SharedLimits):
    """[limits.account.NAME]"""

    users: Names | None = None


class LimitsSection(Section):
    user: dict[str, UserLimits] = Field(default_factory=dict)
    group: dict[str, SharedLimits] = Field(default_factory=dict)
    account: dict[str, AccountLimits] = Field(default_factory=dict)
    qos: dict[str, SharedLimits] = Field(default_factory=dict)
    partition: dict[str, SharedLimits] = Field(default_factory=dict)


class AccountQuota(Section):
    """[quota.account.NAME]"""

    devices: float = Field(ge=0, le=1_000_000)


class QuotaSection(Section):
    account: dict[str, AccountQuota] = Field(default_factory=dict)


def limit_rules(limits: LimitsSection, quota: QuotaSection) -> LimitRules:
    """The rules of both sections. Whether they make sense is for Rules.check to say."""
    return LimitRules(
        user=_merged(limits.user),
        group=_merged(limits.group),
        account=_merged(limits.account),
        qos=_merged(limits.qos),
        partition=_merged(limits.partition),
        gids=_gids(limits.group),
        quota={name: given.devices for name, given in quota.account.items()},
    )


def guilty(message: str) -> tuple[str, ...] | None:
    """The setting that a message of LimitRules.check is about; None if it is about something else."""
    section, colon, rest = message.partition(": ")
    path = tuple(section.split(".", 2))
    if not colon or len(path) != 3 or path[0] not in ("limits", "quota"):
        return None
    return (*path, rest.partition(" ")[0])


def _merged(sections: Mapping[str, UserLimits]) -> dict[str, Limits]:
    common = _given(sections[EVERYONE]) if EVERYONE in sections else {}
    return {name: Limits(**{**common, **_given(section)}) for name, section in sections.items()}


def _given(section: UserLimits) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.model_fields_set}


def _gids(names: Mapping[str, SharedLimits]) -> dict[int, str]:
    """Those groups that exist, by number. A name of digits is a number."""
    found: dict[int, str] = {}
    for name in names:
        try:
            found[int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid] = name
        except KeyError:
            continue
    return found
