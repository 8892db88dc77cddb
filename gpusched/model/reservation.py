"""A reservation: devices that an administrator keeps for some users and accounts, once or again and again.

A reservation knows one window, the one that is armed: the present one or the next to come. When a window is over,
`rearmed` gives the reservation with its next one, or None. Windows repeat by the calendar of the administrator's time
zone: one at 09:00 stays at 09:00 when the clocks change. Nothing here asks what time it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gpusched.model.evolve import evolve

DAY = 86400.0
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # %a would speak the language of the machine
_LOOK_AHEAD = 380  # days in which two repeating reservations are compared: clocks change twice in them


class Repeat(StrEnum):
    DAILY = "daily"
    WEEKLY = "weekly"

    @property
    def days(self) -> int:
        return 1 if self is Repeat.DAILY else 7


class Window(NamedTuple):
    """From when to when, wall clock."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices kept for some. Without users and accounts it is for maintenance: no job runs there."""

    name: str
    devices: tuple[str, ...]  # UUIDs
    start: float  # wall clock: of the armed window
    end: float
    duration: float  # seconds, of every window
    users: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    repeat: Repeat | None = None
    zone: str = ""  # of the calendar by which it repeats and is shown: an IANA name or +01:00; "": UTC
    comment: str = ""
    by: str = ""  # the administrator
    made_at: float = 0.0  # wall clock
    begun: bool = False  # the armed window has begun; it stays so even if the clock is set back
    first: float | None = None  # wall clock: the start of its first window, if this is a later one
    ended_at: float | None = None  # wall clock: over, or taken back; kept for the history only

    def allows(self, user: str, account: str) -> bool:
        """Whether jobs of this user and account may use it."""
        return user in self.users or account in self.accounts

    def active(self, wall: float) -> bool:
        return (self.begun or self.start <= wall) and wall < self.end

    def windows(self) -> Iterator[Window]:
        """The armed window and those after it, without end if it repeats."""
        yield Window(self.start, self.end)
        if self.repeat is None:
            return
        # From the very first one on: a window that a change of the clocks has moved moves no later ones.
        first = datetime.fromtimestamp(self.start if self.first is None else self.first, zone_of(self.zone))
        passed = int((self.start - first.timestamp()) / (self.repeat.days * DAY))
        for count in range(max(0, passed - 1), 1_000_000):
            start = (first + timedelta(days=count * self.repeat.days)).timestamp()
            if start > self.start:
                yield Window(start, start + self.duration)

    def rearmed(self, wall: float) -> Reservation | None:
        """This reservation with its first window that is not over at `wall`; None: there is none."""
        for window in self.windows():
            if window.end > wall:
                if window.start == self.start:
                    return self
                first = self.start if self.first is None else self.first
                return evolve(self, start=window.start, end=window.end, begun=False, first=first)
        return None

    def for_whom(self) -> str:
        """`ann, bob and account vision`, or `maintenance`."""
        who = [", ".join(self.users)] if self.users else []
        if self.accounts:
            who.append(f"account{'s' if len(self.accounts) > 1 else ''} {', '.join(self.accounts)}")
        return " and ".join(who) or "maintenance"

    def when(self) -> str:
        """The armed window in words: `Mon 2026-11-23 09:00 to 17:00, daily`, in the administrator's time zone."""
        zone = zone_of(self.zone)
        start, end = datetime.fromtimestamp(self.start, zone), datetime.fromtimestamp(self.end, zone)
        day = "" if start.date() == end.date() else f"{_DAYS[end.weekday()]} {end:%Y-%m-%d} "
        until = f"{day}{end:%H:%M}"
        again = f", {self.repeat}" if self.repeat else ""
        return f"{_DAYS[start.weekday()]} {start:%Y-%m-%d %H:%M} to {until}{again}"


@lru_cache(maxsize=16)
def zone_of(text: str) -> tzinfo:
    """The time zone of an IANA name, or of a distance such as +01:00; UTC for what nobody knows (any more)."""
    if text[:1] in ("+", "-"):
        try:
            hours, minutes = text[1:].split(":")
            ahead = timedelta(hours=int(hours), minutes=int(minutes))
            return timezone(ahead if text[0] == "+" else -ahead)
        except ValueError:
            return UTC
    try:
        return ZoneInfo(text) if text else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def _until(reservation: Reservation, end: float) -> Iterator[Window]:
    for window in reservation.windows():
        if window.start >= end:
            return
        yield window


def clash(one: Reservation, other: Reservation) -> Window | None:
    """The first window of `one` that overlaps a window of `other`, as far as about a year shows it; None: none does."""
    if not set(one.devices) & set(other.devices):
        return None
    horizon = max(one.start, other.start) + _LOOK_AHEAD * DAY
    others = _until(other, horizon)
    theirs = next(others, None)
    for mine in _until(one, horizon):
        while theirs is not None and theirs.end <= mine.start:
            theirs = next(others, None)
        if theirs is None:
            return None
        if theirs.start < mine.end:
            return mine
    return None


@lru_cache(maxsize=256)
def widest_gap(reservations: tuple[Reservation, ...]) -> float:
    """The longest time, in seconds, between two windows of these repeating reservations taken together."""
    begin = min(r.start for r in reservations)
    windows = sorted(w for r in reservations for w in _until(r, begin + 15 * DAY))
    widest, covered = 0.0, windows[0].end
    for window in windows[1:]:
        widest = max(widest, window.start - covered)
        covered = max(covered, window.end)
    return widest


def sharing(one: Reservation, others: Iterable[Reservation]) -> tuple[Reservation, ...]:
    """The repeating reservations that have a device in common with this one, itself among them if it repeats."""
    mine = set(one.devices)
    return tuple(r for r in others if r.repeat is not None and mine.intersection(r.devices))
