"""Named places at which a test can have the daemon die as by `kill -9`: failpoint("after-commit").

Inert unless a test arms them through GPUSCHED_TEST_FAILPOINTS, and never honoured in a root service that systemd has
started. An unarmed one costs a look at an empty dict. It must never do anything but end this very process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

VARIABLE = "GPUSCHED_TEST_FAILPOINTS"
_armed: dict[str, int] = {}  # name → the how manieth time it kills, counted down


def arm(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Arm what the variable names, `name` or `name:3` (the third time), separated by commas. Returns the names."""
    _armed.clear()
    if os.geteuid() == 0 and "NOTIFY_SOCKET" in environment:
        return ()
    for word in environment.get(VARIABLE, "").split(","):
        name, _, times = word.strip().partition(":")
        if name:
            _armed[name] = int(times or 1)
    return tuple(_armed)


def failpoint(name: str) -> None:
    """Die here and now if a test has asked for it."""
    if name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
