"""The daemon's configuration: one TOML file, checked as a whole, and defaults that need no file.

What is wrong is told with file and line, all of it at once, before anything has started. Out come frozen values; the
part that decisions depend on is a model.rules.Rules. docs/config.example.toml shows every setting.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from gpusched.daemon.config_errors import at, broken_toml, explained
from gpusched.daemon.config_limits import LimitsSection, QuotaSection, guilty, limit_rules
from gpusched.daemon.config_policy import PolicySection
from gpusched.daemon.config_values import Days, Mib, Name, Names, Seconds, Section, TimeLimit
from gpusched.model.errors import UsageError
from gpusched.model.rules import DEFAULT_PARTITION, DEFAULT_QOS, Partition, PreemptMode, Qos, Rules, default_qos

LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon is told. Times in seconds, memory in MiB, days as they are."""

    devices: str = "nvml"  # or sim:4x24G
    nvml_library: str | None = None  # path of libnvidia-ml.so.1; None: as the system finds it
    sample_interval: float = 1.0
    rules: Rules = field(default_factory=lambda: Rules.default(os.cpu_count() or 1))
    history_days: float = 90.0  # ended jobs and their stories; 0: for ever
    checkpoint_days: float = 14.0  # checkpoints of ended jobs; 0: for ever
    output_max_mib: int | None = 10 * 1024  # of a running job's output file; None: no limit
    log_level: LogLevel = "info"
    autostart: bool = True  # for the command line: may a command start a personal daemon
    source: str | None = field(default=None, compare=False)  # the file it was read from


def load_config(path: Path | str | None, *, must_exist: bool = False) -> Config:
    """The configuration of a file; the defaults for None and, unless it `must_exist`, for a file that is not there.

    Raises UsageError that names the file, the line, the setting and what is allowed.
    """
    if path is None:
        return Config()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        if must_exist:
            raise UsageError(f"there is no configuration file {path}", "check the path, or leave it out") from None
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the configuration {path} cannot be read: {error}"
        raise UsageError(message, "it must be a text file in UTF-8 that the daemon's user may read") from error
    return read_config(text, str(path))


def read_config(text: str, name: str) -> Config:
    """The configuration of a text; `name` is how messages call it."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise broken_toml(name, text, error) from error
    try:
        parsed = _File.model_validate(values)
    except ValidationError as error:
        raise explained(name, text, error, _File) from error
    rules = _rules(parsed, name, text)
    return Config(
        devices=parsed.devices,
        nvml_library=parsed.nvml_library,
        sample_interval=parsed.sample_interval,
        rules=rules,
        history_days=parsed.history_days,
        checkpoint_days=parsed.checkpoint_days,
        output_max_mib=parsed.output_max,
        log_level=parsed.log_level,
        autostart=parsed.client.autostart,
        source=name,
    )


def _rules(parsed: _File, name: str, text: str) -> Rules:
    """The rules of the file, checked together. Raises UsageError with the line of what does not fit."""
    rules = Rules(
        qos=_levels(parsed, name, text),
        partitions=_partitions(parsed),
        default_qos=parsed.default_qos,
        default_partition=parsed.default_partition,
        cpu_jobs=parsed.cpu_jobs if parsed.cpu_jobs is not None else os.cpu_count() or 1,
        foreign_floor_mib=parsed.foreign_floor,
        max_requeues=parsed.max_requeues,
        max_unasked_requeues=parsed.max_unasked_requeues,
        bypass_limit=parsed.bypass_limit,
        max_array=parsed.max_array,
        policy=parsed.policy.rules(),
        limits=limit_rules(parsed.limits, parsed.quota),
    )
    try:
        return rules.check()
    except UsageError as error:
        where = at(name, text, _guilty(error.message, rules))
        raise UsageError(f"{where}: {error.message}", error.hint) from error


def _guilty(message: str, rules: Rules) -> tuple[str, ...]:
    """The setting that a message of Rules.check is about."""
    if (setting := guilty(message)) is not None:
        return setting
    for level in rules.qos:
        if message.startswith(f"QoS {level!r}") or f": {level} → " in message:
            return ("qos", level, "preempts")
    for partition in rules.partitions:
        if message.startswith(f"partition {partition!r}"):
            return ("partition", partition, "default_time")
    return ("default_qos",) if "QoS" in message else ("default_partition",)


def _levels(parsed: _File, name: str, text: str) -> dict[str, Qos]:
    """The default levels, changed and joined by what the file says."""
    levels = default_qos()
    for level, given in parsed.qos.items():
        known, where = levels.get(level), at(name, text, ("qos", level))
        alike = [other for other in levels if other != level and other.casefold() == level.casefold()]
        if alike:
            raise UsageError(f"{where}: QoS {level!r} differs from {alike[0]!r} only in case", "write both alike")
        if known is None and given.priority is None:
            listed = ", ".join(levels)
            raise UsageError(f"{where}: QoS {level!r} needs a priority", f"such as 500 (levels so far: {listed})")
        known = known or Qos(level, 0)
        levels[level] = Qos(
            level,
            known.priority if given.priority is None else given.priority,
            known.preempts if given.preempts is None else given.preempts,
            known.mode if given.mode is None else given.mode,
            known.grace if given.grace is None else given.grace,
        )
    return levels


def _partitions(parsed: _File) -> dict[str, Partition]:
    """The default partition of all devices, changed and joined by what the file says."""
    given = {DEFAULT_PARTITION: _Partition(), **parsed.partition}
    return {name: Partition(name, p.devices, p.max_time, p.default_time) for name, p in given.items()}


# ---- the shape of the file --------------------------------------------------------------------------------------


def _devices(value: Any) -> Any:
    if isinstance(value, str) and value != "nvml" and not re.fullmatch(r"sim:\d+x\S+", value):
        raise ValueError(f"{value!r} is neither \"nvml\" nor simulated devices such as \"sim:4x24G\"")
    return value


class _Qos(Section):
    priority: int | None = Field(default=None, ge=-1_000_000, le=1_000_000)
    preempts: Names | None = None
    mode: Annotated[PreemptMode, Field(strict=False)] | None = None
    grace: Seconds | None = Field(default=None, ge=0, le=86400)


class _Partition(Section):
    devices: Names = Field(default=("*",), min_length=1)
    max_time: TimeLimit = None
    default_time: TimeLimit = None


class _Client(Section):
    autostart: bool = True


class _File(Section):
    devices: Annotated[str, BeforeValidator(_devices)] = "nvml"
    nvml_library: str | None = None
    sample_interval: Seconds = Field(default=1.0, ge=0.1, le=3600)
    default_qos: str = DEFAULT_QOS
    default_partition: str = DEFAULT_PARTITION
    cpu_jobs: int | None = Field(default=None, ge=0, le=100_000)
    foreign_floor: Mib = Field(default=256, ge=0)
    max_requeues: int = Field(default=5, ge=0, le=1_000_000)
    max_unasked_requeues: int = Field(default=5, ge=0, le=1_000_000)
    bypass_limit: int = Field(default=100, ge=0, le=1_000_000)
    max_array: int = Field(default=1_000_000, ge=1, le=1_000_000)
    history_days: Days = 90.0
    checkpoint_days: Days = 14.0
    output_max: Mib | None = 10 * 1024
    log_level: LogLevel = "info"
    qos: dict[Name, _Qos] = Field(default_factory=dict)
    partition: dict[Name, _Partition] = Field(default_factory=dict)
    policy: PolicySection = PolicySection()
    limits: LimitsSection = LimitsSection()
    quota: QuotaSection = QuotaSection()
    client: _Client = _Client()
