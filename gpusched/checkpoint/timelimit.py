"""Whether the job's time limit may pass before the next safe point; then its owner is told at this one, which saves.

At its time limit gpusched asks a job to save and leave, and gives it its grace period. A job whose safe points are
further apart than that would hear the question too late, and be killed with all it did since its last save. It goes by
the longest distance between two safe points so far. Must not save, nor look at a clock once it is made.
"""

import os
import time
from typing import Callable, Optional

from gpusched import rundir
from gpusched.checkpoint.watchdog import seconds_in


class TimeLimit:
    """One attempt's limit. end: time.monotonic() at which it passes; None: there is none. grace, in seconds."""

    def __init__(self, end: Optional[float], grace: float, tell: Callable[[str], None]) -> None:
        self._end, self._grace, self._tell = end, grace, tell
        self._last: Optional[float] = None
        self._longest = 0.0

    @staticmethod
    def from_environment(tell: Callable[[str], None]) -> "TimeLimit":
        end, grace = (seconds_in(os.environ.get(name, "")) for name in (rundir.ENV_END_TIME, rundir.ENV_GRACE))
        if end is None or grace is None:
            return TimeLimit(None, 0.0, tell)
        return TimeLimit(time.monotonic() + end - time.time(), grace, tell)

    def near(self, now: float) -> bool:
        """A safe point is reached. True, once, if the limit may pass before the next one; then it has been told."""
        if self._end is None:
            return False
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        if self._longest <= self._grace or now + self._longest <= self._end:
            return False
        text = "the time limit is in %.0f s, and safe points were up to %.0f s apart: the next one may come too late, "
        text += "as gpusched waits %.0f s. Saving here; call run.check() in long loops, or submit with a longer --grace"
        self._tell(text % (max(0.0, self._end - now), self._longest, self._grace))
        self._end = None
        return True
