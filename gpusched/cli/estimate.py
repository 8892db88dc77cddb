"""Estimated starts as people read them: `~14:05` in a table, a sentence elsewhere."""

from __future__ import annotations

import time
from typing import Any

from gpusched.model.units import format_duration

Json = dict[str, Any]
_WEEK = 6 * 86400.0
AT_ONCE = 1.0  # seconds


def in_table(estimate: Json | None) -> str:
    """`~14:05`, `~Tue 14:05`, `~2026-12-24`; '-' if nobody can say."""
    if not estimate or estimate.get("expected") is None:
        return "-"
    return f"~{_clock(max(time.time(), estimate['expected']))}"


def sentence(estimate: Json | None) -> str:
    """`about 14:05 (in 25:00), between 13:40 and 15:10`, or why nobody can say; empty without an estimate."""
    if not estimate:
        return ""
    now = time.time()
    expected, earliest, latest = (estimate.get(name) for name in ("expected", "earliest", "latest"))
    why = estimate.get("text") or ""
    if expected is None:
        return why
    if max(expected, latest or 0.0) <= now + AT_ONCE and latest is not None:
        return "now"
    text = "now" if expected <= now + AT_ONCE else f"about {_clock(expected)} (in {_about(expected - now)})"
    first, last = _clock(max(now, earliest or now)), _clock(latest) if latest is not None else ""
    if not last:
        return f"{text}, not before {first}; how late at worst, nobody can say" + (f": {why}" if why else "")
    return text if first == last else f"{text}, between {first} and {last}"


def _clock(seconds: float) -> str:
    """The time of day; with the weekday or the date, where it is not today. Local time zone."""
    then, now = time.localtime(seconds), time.localtime()
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if seconds - time.mktime(now) < _WEEK else "%Y-%m-%d", then)


def _about(seconds: float) -> str:
    """Whole minutes where seconds would only pretend."""
    return format_duration(seconds if seconds < 600 else round(seconds / 60) * 60)
