"""When to save although nobody asked: after a number of steps, after a time, or as often as pays.

As often as pays is J. W. Young's rule (CACM 17, 1974; refined by J. T. Daly, FGCS 22, 2006): with a save that costs the
loop C seconds, and M seconds between ends that came unprepared (a crash, a kill, a power cut; a preemption saves by
itself), the time lost to saving and to repeating is least if saves are sqrt(2 C M) apart.
Must not save, nor look at a clock: whoever asks says what time it is.
"""

import math
from typing import Any, Dict, Union

from gpusched.checkpoint.errors import CheckpointError

AUTO = "auto"
SHORTEST, LONGEST = 15.0, 3600.0  # seconds: bounds of what the rule may choose
_PRIOR = 6 * 3600.0  # seconds until the first unprepared end, as long as none was seen
_GUESS = 60.0  # seconds until the first save, whose cost is not known yet
Every = Union[float, str, None]


class Interval:
    """Decides whether a periodic save is due. `history` lives in the checkpoint, so that attempts add up."""

    def __init__(self, every_seconds: Every, every_steps: "int | None") -> None:
        if isinstance(every_seconds, str) and every_seconds != AUTO:
            text = "every_seconds=%r is not known." % every_seconds
            raise CheckpointError(text, "Give a number of seconds, %r, or None for never." % AUTO)
        if every_steps is not None and every_steps < 1:
            raise CheckpointError("every_steps=%r is not possible." % every_steps, "Give a number from 1, or None.")
        self._every, self._steps = every_seconds, every_steps
        self._began = self._last = 0.0
        self._before: Dict[str, Any] = {"seconds": 0.0, "unprepared": 0}
        self._cost = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there are periodic saves at all."""
        return self._every is not None or self._steps is not None

    def begin(self, now: float, history: "Dict[str, Any] | None" = None, unprepared: bool = False) -> None:
        """An attempt starts; `unprepared`: the one before it ended without having been able to save."""
        self._began = self._last = now
        if history:
            self._before = {"seconds": history["seconds"], "unprepared": history["unprepared"] + bool(unprepared)}
            self._cost = history.get("cost", 0.0)

    def history(self, now: float) -> Dict[str, Any]:
        """What the next attempt should know."""
        seconds = self._before["seconds"] + now - self._began
        return {"seconds": round(seconds, 3), "unprepared": self._before["unprepared"], "cost": round(self._cost, 6)}

    def saved(self, now: float, cost: float = 0.0) -> None:
        """A save began at `now` and held the loop up for `cost` seconds (0: unknown)."""
        self._last = now
        if cost > 0:
            self._cost = cost if not self._cost else 0.5 * (self._cost + cost)

    def seconds(self, now: float) -> float:
        """The present distance between saves by time; inf if there are none."""
        if self._every is None:
            return math.inf
        if not isinstance(self._every, str):
            return float(self._every)
        if not self._cost:
            return _GUESS
        between = (self._before["seconds"] + now - self._began + _PRIOR) / (self._before["unprepared"] + 1)
        return min(LONGEST, max(SHORTEST, math.sqrt(2 * self._cost * between)))

    def due(self, now: float, steps: int) -> bool:
        """Whether to save at this step boundary."""
        return self.due_by_steps(steps) or self.due_by_time(now)

    def due_by_time(self, now: float) -> bool:
        return now - self._last >= self.seconds(now)

    def due_by_steps(self, steps: int) -> bool:
        return self._steps is not None and steps % self._steps == 0
