"""The one error of the training-side library, and the one way it talks to the person who trains.

Stands alone: training environments do not have the daemon's packages. Never raises on a broken stderr.
"""

import sys


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
