"""The one error of the training-side library, and the one way it talks to the person who trains.

Stands alone: training environments do not have the daemon's packages. Never raises on a broken stderr.
"""

import re
import sys
from typing import Callable


class CheckpointError(Exception):
    """Something about a checkpoint that a person must decide; `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message + ("\n  " + hint if hint else ""))
        self.message = message
        self.hint = hint


def say(sentence: str) -> None:
    """One line on stderr. A closed or broken stderr must not end a training run."""
    try:
        print("gpusched: " + sentence, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass


class Complaints:
    """Tells of a trouble that comes again and again: at once, and then at the 10th, 100th, 1000th… time."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._last, self._times = "", 0

    def tell(self, sentence: str) -> None:
        """Sentences that differ in their numbers only are the same one."""
        kind = re.sub(r"[0-9]+", "", sentence)
        self._times = self._times + 1 if kind == self._last else 1
        self._last = kind
        if self._times == 1:
            self._tell(sentence)
        elif set(str(self._times)[1:]) == {"0"} and str(self._times)[0] == "1":
            self._tell("%s (for the %dth time)" % (sentence, self._times))

    def over(self) -> None:
        """The trouble has passed; the next one is told at once."""
        self._last, self._times = "", 0
