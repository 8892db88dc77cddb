"""Slurm's --signal: `USR1@90` sends USR1 90 seconds before the time limit (and when the job is asked to stop)."""

from __future__ import annotations

import signal

from gpusched.model.errors import UsageError, known
from gpusched.model.units import parse_seconds

_HINT = "write for example USR1, TERM or USR1@90 (90 seconds before the time limit)"
_FORBIDDEN = (signal.SIGKILL, signal.SIGSTOP)


def signal_name(number: int) -> str:
    """`USR1` for 10; the number in text where it has no name."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def _number(text: str) -> int:
    if text.isascii() and text.isdigit():
        number = int(text) if len(text) < 4 else 0
        if number not in signal.valid_signals():
            raise UsageError(f"there is no signal number {text}", _HINT)
        return number
    try:
        return int(signal.Signals["SIG" + text.upper().removeprefix("SIG")])
    except KeyError:
        names = [item.name.removeprefix("SIG") for item in signal.Signals if item not in _FORBIDDEN]
        raise known("signal", text, names) from None


def parse_signal(text: str) -> tuple[int, float]:
    """The signal's number and how many seconds before the time limit it is sent (0: only when asked to stop).

    Slurm's prefix `B:` is accepted: here the signal always goes to the job's main process only. Raises UsageError.
    """
    body = text.strip()
    body = body[2:] if body[:2].upper() == "B:" else body
    name, at, before = body.partition("@")
    if not name:
        raise UsageError(f"signal {text!r} cannot be read", _HINT)
    number = _number(name)
    if number in _FORBIDDEN:
        raise UsageError(
            f"signal {signal_name(number)} cannot ask a job to save: no program can catch it",
            "choose one that can be caught, such as TERM or USR1",
        )
    if at and not before:
        raise UsageError(f"signal {text!r} names no time after '@'", _HINT)
    return number, parse_seconds(before) if at else 0.0
