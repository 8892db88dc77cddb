"""Decayed device-seconds as sums at one moment: what ended attempts have used, what live ones have used so far, and
what young ones are charged beforehand. Reading at another moment costs the same however many attempts there are.

Each sum obeys dV/dt = G − λV (G devices in use), whose solution over t seconds is V·e^(−λt) + G·(1 − e^(−λt))/λ.
"""

from __future__ import annotations

from bisect import bisect_left
from math import exp, expm1


class Decayed:
    """Decayed device-seconds of one account, or of all together. Times are wall clock."""

    __slots__ = ("at", "decay", "ended", "gpus", "live", "young")

    def __init__(self, decay: float, entry: float, at: float) -> None:
        """decay: λ per second (0: nothing is forgotten); entry: seconds that a start is charged at least."""
        self.decay = decay
        self.at = at  # the moment of both sums
        self.ended = 0.0  # by attempts that have ended
        self.live = 0.0  # by those that run, so far
        self.gpus = 0.0  # on which they run
        self.young = Young(entry)

    def value(self, now: float) -> float:
        """Device-seconds, decayed to `now`, with what live attempts are charged beyond what they have used."""
        passed = max(0.0, now - self.at)
        kept = exp(-self.decay * passed)
        return (self.ended + self.live) * kept + self.gpus * self.used(passed) + self.young.ahead(now)

    def used(self, seconds: float) -> float:
        """What one device in use for so long weighs at the end of it."""
        return -expm1(-self.decay * seconds) / self.decay if self.decay else seconds

    def settle(self, now: float) -> None:
        """Bring the sums to `now`. Where the clock has gone back they stay as they are and count from there."""
        passed, self.at = now - self.at, now
        if passed <= 0.0:
            return
        decay = self.decay
        kept = exp(-decay * passed)
        self.ended *= kept
        self.live *= kept
        if self.gpus:
            self.live += self.gpus * (-expm1(-decay * passed) / decay if decay else passed)

    def start(self, gpus: float, started: float, now: float) -> None:
        """An attempt has been running since `started`: since just now, or since before a restart."""
        if now != self.at:
            self.settle(now)
        self.gpus += gpus
        if started < now:
            self.live += gpus * self.used(now - started)
        self.young.start(gpus, started)

    def end(self, gpus: float, started: float, ran: float, now: float) -> None:
        """An attempt that was counted from `started` on has ended, and really ran for `ran` seconds of that time."""
        if now != self.at:
            self.settle(now)
        counted = now - started if started < now else 0.0
        decay = self.decay
        so_far = -expm1(-decay * counted) / decay if decay else counted
        idle = counted - ran  # between its end and the moment in which the daemon learned of it
        if idle == 0.0:
            self.ended += gpus * so_far
        else:
            used = self.used(ran) if ran > 0.0 else 0.0
            self.ended += gpus * (used if idle <= 0.0 else used * exp(-self.decay * idle))
        self.gpus -= gpus
        self.live -= gpus * so_far
        if self.gpus < 1e-9:
            self.gpus = self.live = 0.0  # nothing runs: no rounding error stays behind
        elif self.live < 0.0:
            self.live = 0.0
        self.young.end(gpus, started, now)

    def restart(self, now: float) -> None:
        """Forget the live attempts, to have them told anew by `start`: the clock was set back to `now`."""
        self.settle(now)
        self.live = self.gpus = 0.0
        self.young = Young(self.young.entry)


class Young:
    """For each device of a live attempt, the part of the entry charge that its use has not reached yet.

    Kept in the order of the starts with a mark between those that have outgrown the charge and the young, and sums
    over the young. The mark follows the moment that is asked for, in either direction.
    """

    __slots__ = ("_gpus", "_gpus_starts", "_mark", "_origin", "_starts", "_sum", "entry")

    def __init__(self, entry: float) -> None:
        self.entry = entry  # seconds
        self._starts: list[float] = []  # ascending
        self._gpus: list[float] = []  # devices of the attempts that started then and have not ended
        self._mark = 0  # the first that is young
        self._sum = 0.0  # devices of the young
        self._gpus_starts = 0.0  # devices × (start − origin) of the young
        self._origin = 0.0  # near the starts, so that no digits are lost

    def start(self, gpus: float, started: float) -> None:
        """An attempt on so many devices; starts must be told in their order (an earlier one counts as the last)."""
        if not self.entry or not gpus:
            return
        self._follow(started)
        if self._mark > 64 and 2 * self._mark > len(self._starts):
            self._trim()
        starts = self._starts
        if not starts:
            self._origin, self._sum, self._gpus_starts = started, 0.0, 0.0
        if not starts or started > starts[-1]:
            starts.append(started)
            self._gpus.append(gpus)
        else:
            self._gpus[-1] += gpus
        if len(starts) > self._mark:
            self._sum += gpus
            self._gpus_starts += gpus * (starts[-1] - self._origin)

    def end(self, gpus: float, started: float, now: float) -> None:
        """An attempt on so many devices that started then has ended."""
        if started <= now - self.entry:
            return  # it had outgrown the charge
        self._follow(now)
        index = max(self._mark, bisect_left(self._starts, started))
        if index < len(self._starts):
            self._gpus[index] -= gpus
            self._count(index, -gpus)

    def ahead(self, now: float) -> float:
        """Device-seconds that are charged beyond what has been used."""
        self._follow(now)
        if self._sum <= 0.0:
            return 0.0
        # at most the whole charge: where the clock was set back, starts may lie ahead of it
        left = self._sum * (self.entry - (now - self._origin)) + self._gpus_starts
        return min(max(0.0, left), self._sum * self.entry)

    def _follow(self, now: float) -> None:
        """Have the mark where the young begin at this moment."""
        starts, mark, grown = self._starts, self._mark, now - self.entry
        count = len(starts)
        while mark < count and starts[mark] <= grown:
            gpus = self._gpus[mark]
            self._sum -= gpus
            self._gpus_starts -= gpus * (starts[mark] - self._origin)
            mark += 1
        while mark and starts[mark - 1] > grown:
            mark -= 1
            self._count(mark, self._gpus[mark])
        self._mark = mark

    def _count(self, index: int, gpus: float) -> None:
        self._sum += gpus
        self._gpus_starts += gpus * (self._starts[index] - self._origin)

    def _trim(self) -> None:
        """Let go of those that have outgrown the charge."""
        del self._starts[: self._mark], self._gpus[: self._mark]
        self._mark = 0
        if self._starts:  # and count anew: no rounding error stays behind
            self._origin, self._sum, self._gpus_starts = self._starts[0], 0.0, 0.0
            for index, gpus in enumerate(self._gpus):
                self._count(index, gpus)
