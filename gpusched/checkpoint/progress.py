"""How far the run is, for `gpusched queue` and `show`: lines of JSON appended to progress.jsonl.

Lines are rate limited (five a second in the first minutes, one in ten seconds after some hours) so that neither the
loop nor the disk notices, and not fsynced. A metric that is still on a GPU is only fetched for a line that is written.
Must not fail a training run: a full disk costs lines, nothing else.
"""

import json
import math
import os
import time
from typing import Any, Dict, Optional

from gpusched import rundir


class Progress:
    """Writes progress lines into a job directory; without one it only remembers the latest numbers."""

    def __init__(self, directory: Optional[str]) -> None:
        self._path = os.path.join(directory, rundir.PROGRESS) if directory else None
        self._metrics: Dict[str, Any] = {}
        self._began = time.monotonic()
        self._next = 0.0
        self._unwritten = False

    def note(self, metrics: Dict[str, Any]) -> None:
        """Remember the latest metrics; they join every following line until replaced."""
        if self._path is not None:
            for name, value in metrics.items():
                self._metrics[name] = value.detach() if hasattr(value, "detach") else value

    def latest(self) -> Dict[str, Any]:
        """The latest metrics as they would be written: numbers and short texts."""
        return {name: number for name, number in map(_number, self._metrics.items()) if number is not None}

    def due(self, now: float) -> bool:
        self._unwritten = True
        return self._path is not None and now >= self._next

    def write(self, epoch: int, step: int, total: Optional[int]) -> None:
        """Append one line, whether or not it is due; `total` is the number of steps of the whole run, if known."""
        if self._path is None or not self._unwritten:
            return
        now = time.monotonic()
        self._next = now + min(10.0, max(0.2, (now - self._began) / 1000))
        self._unwritten = False
        line = {"epoch": epoch, "step": step, "total": total, "metrics": self.latest(), "time": time.time()}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError:
            self._unwritten = True


def _number(item: Any) -> Any:
    """(name, a number or short text for JSON, or None for what has no such form)."""
    name, value = item
    if isinstance(value, (bool, str)):
        return str(name), value[:200] if isinstance(value, str) else value
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return str(name), None
    if not math.isfinite(number):
        return str(name), str(number)
    return str(name), value if isinstance(value, int) else number
