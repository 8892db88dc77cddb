"""Sizes and durations as people type and read them: `20G`, `1-12:00:00`, `90s`. Inside: MiB (int), seconds (float)."""

from __future__ import annotations

import math
import re

from gpusched.model.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([MGT])(?:I?B)?", re.IGNORECASE | re.ASCII)
_MIB = {"M": 1, "G": 1024, "T": 1024 * 1024}
_SIZE_HINT = "write for example 512M, 20G or 20GiB (binary multiples)"

_SUFFIXED = re.compile(
    r"(?:(\d+(?:\.\d+)?)w)?(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s(?:ec)?)?",
    re.IGNORECASE | re.ASCII,
)
_SUFFIX_SECONDS = (604800, 86400, 3600, 60, 1)
_COLONS = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_UNLIMITED = ("unlimited", "infinite", "none")
_LONGEST = 36500 * 86400.0
_DURATION_HINT = "write for example 90 (minutes), 2:00:00, 1-12:00:00 (days-hours:…), 45m or 1d12h; 0 means no limit"
_SECONDS_HINT = "write for example 60s, 2m or 90 (seconds)"


def parse_size(text: str) -> int:
    """A memory size in MiB, rounded up. The unit is required. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        if text.strip().isdigit():
            raise UsageError(f"memory size {text!r} has no unit", f"{text.strip()}G or {text.strip()}M? {_SIZE_HINT}")
        raise UsageError(f"memory size {text!r} cannot be read", _SIZE_HINT)
    value = float(found[1]) * _MIB[found[2].upper()]
    if not 0 < value < 1 << 40:
        raise UsageError(f"memory size {text!r} is out of range", _SIZE_HINT)
    return math.ceil(value)


def format_size(mib: int) -> str:
    """`20G` where that is exact, else `20500M`. parse_size reads it back."""
    if mib and mib % _MIB["T"] == 0:
        return f"{mib // _MIB['T']}T"
    return f"{mib // 1024}G" if mib and mib % 1024 == 0 else f"{mib}M"


def _suffixed(text: str) -> float | None:
    """Seconds of `1d12h`, `90s`, …; None if it is not of this form."""
    found = _SUFFIXED.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    return sum(float(number) * unit for number, unit in zip(found.groups(), _SUFFIX_SECONDS, strict=True) if number)


def _slurm(text: str) -> float | None:
    """Seconds of Slurm's six forms M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None if it is none of them."""
    if found := _DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)
    if found := _COLONS.fullmatch(text):
        parts = [int(part) for part in found.groups() if part is not None]
        match parts:
            case [minutes]:
                return float(minutes * 60)
            case [minutes, seconds]:
                return float(minutes * 60 + seconds)
            case [hours, minutes, seconds]:
                return float(hours * 3600 + minutes * 60 + seconds)
    return None


def parse_duration(text: str) -> float | None:
    """A time limit in seconds; None: no limit (`0` or `unlimited`, as in Slurm).

    Slurm's six forms (a bare number is minutes) and suffixes (`90s 45m 2h 1d12h`). Raises UsageError.
    """
    text = text.strip()
    if text.lower() in _UNLIMITED:
        return None
    seconds = _slurm(text) if len(text) <= 32 else None
    if seconds is None:
        seconds = _suffixed(text) if len(text) <= 32 else None
    if seconds is None:
        raise UsageError(f"time {text!r} cannot be read", _DURATION_HINT)
    if seconds > _LONGEST:
        raise UsageError(f"time {text!r} is longer than a hundred years", _DURATION_HINT)
    return seconds or None


def parse_seconds(text: str) -> float:
    """A short interval such as a grace period, in seconds: `60s`, `2m`; a bare number is seconds. Raises UsageError."""
    text = text.strip()
    if len(text) > 32:
        raise UsageError(f"interval {text[:32]!r}… cannot be read", _SECONDS_HINT)
    seconds = float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else _suffixed(text)
    if seconds is None:
        raise UsageError(f"interval {text!r} cannot be read", _SECONDS_HINT)
    if seconds > _LONGEST:
        raise UsageError(f"interval {text!r} is longer than a hundred years", _SECONDS_HINT)
    return seconds


def format_duration(seconds: float | None) -> str:
    """`1-12:00:00`, `2:00:00`, `0:42` (whole seconds, rounded down), `unlimited`. parse_duration reads it back."""
    if seconds is None:
        return "unlimited"
    total = max(0, int(seconds))
    minutes, second = divmod(total, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
