"""What the daemon asks of a supervisor: ask.json read once per change, each seq carried out once. Signals nobody."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpusched import rundir


@dataclass(slots=True)
class Asks:
    """The supervisor's side of ask.json and `signalled`."""

    control: str
    done: int = 0  # seq up to which asks have been carried out
    sent: set[int] = field(default_factory=set)  # signal numbers that the main process has had
    _seen: tuple[int, int] | None = None
    _pending: dict[str, Any] | None = None

    def next(self) -> dict[str, Any] | None:
        """The ask that waits to be carried out, if there is one. A stat only, while the file is unchanged."""
        try:
            info = os.stat(os.path.join(self.control, rundir.ASK))
        except OSError:
            return self._pending
        trace = (info.st_ino, info.st_mtime_ns)
        if trace != self._seen:
            ask = rundir.read_json(os.path.join(self.control, rundir.ASK))
            self._seen = trace
            self._pending = ask if ask is not None and ask["seq"] > self.done else None
        return self._pending

    def carried_out(self, ask: dict[str, Any], sending: int | None) -> None:
        """Record it, before the signal is sent: a signal that is repeated can cut off a save, one that is lost
        with its supervisor is lost with the attempt anyway."""
        self.done, self._pending = ask["seq"], None
        if sending is not None:
            self.sent.add(sending)
        record = {"seq": ask["seq"], "what": ask["what"], "signal": sending, "at": time.time()}
        with suppress(OSError):
            rundir.write_json(os.path.join(self.control, rundir.SIGNALLED), record, durable=False)


def request_of(ask: dict[str, Any]) -> dict[str, Any]:
    """The `request` that the job reads. `seconds_left` spares it the boot clock."""
    deadline = ask.get("deadline")
    left = None if deadline is None else max(0.0, deadline - time.clock_gettime(time.CLOCK_BOOTTIME))
    return {
        "ask": ask["what"],
        "seq": ask["seq"],
        "cause": ask.get("cause", ""),
        "deadline": deadline,
        "seconds_left": left,
    }
