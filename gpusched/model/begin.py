"""Slurm's --begin: `22:00`, `2026-12-24T18:00`, `now+2h`, `tomorrow`, `noon`. The caller tells the time."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from gpusched.model.errors import UsageError
from gpusched.model.units import parse_seconds

_HINT = "write for example 22:00, 2026-12-24T18:00, now+2h, tomorrow, 'tomorrow 09:00', noon or midnight"
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", re.ASCII)
_NAMED = {"midnight": time(0), "noon": time(12)}


def _time_of_day(text: str) -> time | None:
    """A named or written time of day; None if it is neither. Raises UsageError for 25:00."""
    if text in _NAMED:
        return _NAMED[text]
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    try:
        return time(int(found[1]), int(found[2]), int(found[3] or 0))
    except ValueError:
        raise UsageError(f"begin time {text!r} is no time of day", _HINT) from None


def _from_now(text: str, now: datetime) -> datetime:
    """`now`, `now+2h`. A bare number is refused: Slurm reads it as seconds, others as minutes."""
    rest = text.removeprefix("now").strip()
    if not rest:
        return now
    if not rest.startswith("+"):
        raise UsageError(f"begin time {text!r} cannot be read", _HINT)
    amount = rest[1:].strip()
    if amount.isdigit():
        raise UsageError(
            f"begin time {text!r} has no unit", f"now+{amount}s is {amount} seconds, now+{amount}m is {amount} minutes"
        )
    try:
        # Through UTC, because two hours from now are two hours even in the night the clocks change.
        return (now.astimezone(UTC) + timedelta(seconds=parse_seconds(amount))).astimezone(now.tzinfo)
    except OverflowError:
        raise UsageError(f"begin time {text!r} is too far away", _HINT) from None


def _on(day: date, when: time, now: datetime) -> datetime:
    return datetime.combine(day, when, tzinfo=now.tzinfo)


def parse_begin(text: str, now: datetime) -> datetime:
    """The moment, in the time zone of `now` (which must be aware). Raises UsageError.

    A time of day means its next occurrence. A moment in the past is returned as it is: the job may start at once.
    """
    words = text.strip().lower()
    if words.startswith("now"):
        return _from_now(words, now)
    if (when := _time_of_day(words)) is not None:
        today = _on(now.date(), when, now)
        return today if today >= now else _on(now.date() + timedelta(days=1), when, now)
    day_word, _, rest = words.partition(" ")
    if day_word in ("today", "tomorrow"):
        when = _time_of_day(rest.strip()) if rest.strip() else time(0)
        if when is None:
            raise UsageError(f"begin time {text!r} cannot be read after {day_word!r}", _HINT)
        return now if words == "today" else _on(now.date() + timedelta(days=day_word == "tomorrow"), when, now)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"begin time {text!r} cannot be read", _HINT) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
