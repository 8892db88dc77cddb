"""The job's side of the two files in its job directory: what the scheduler asks, and what the job answers.

    request   scheduler → job   polled with one stat(2) per step, read only when it changed
    watching  job → scheduler   "I poll; send me no signal"
    saved     job → scheduler   written only after a checkpoint is published and durable

A request may name the safe point at which it is to be served (`"safe_point": 17`, counted in this process): that is
how `gpusched rehearse` and the tests stop a run exactly where they want.
Must not save anything itself. Outside gpusched there is no job directory and nothing is ever asked.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Optional, Tuple

from gpusched import rundir
from gpusched.checkpoint.errors import say


@dataclass(frozen=True)
class Request:
    """Something asked for: `stop` is to save and leave, otherwise to save and go on."""

    stop: bool
    cause: str = ""
    seq: int = 0
    safe_point: int = 0  # not before this one
    until: float = float("inf")  # time.monotonic() at which the scheduler's patience ends

    def seconds_left(self) -> float:
        return self.until - time.monotonic()


class Mailbox:
    """One attempt's job directory. Each request is handed out once; a number already answered never again."""

    def __init__(self, directory: Optional[str], attempt: int) -> None:
        self._directory, self._attempt = directory, attempt
        self._path = os.path.join(directory, rundir.REQUEST) if directory else ""
        self._seen: Optional[Tuple[int, int, int]] = None
        self._waiting: Optional[Request] = None
        self._answered = -1

    @staticmethod
    def from_environment() -> "Mailbox":
        attempt = os.environ.get(rundir.ENV_ATTEMPT, "")
        return Mailbox(os.environ.get(rundir.ENV_JOB_DIR) or None, int(attempt) if attempt.isdigit() else 0)

    @property
    def inside(self) -> bool:
        """Whether this process runs under gpusched."""
        return self._directory is not None

    def announce(self) -> None:
        """Tell the scheduler that this process polls; from now on it sends no signal."""
        self._write(rundir.WATCHING, {"pid": os.getpid()}, durable=False)

    def withdraw(self) -> None:
        """Training is over and nobody polls any more: a signal may end this process again."""
        if self._directory is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, rundir.WATCHING))

    def poll(self) -> Optional[Request]:
        """The request that waits for an answer, if there is one. About 2 µs when nothing has changed."""
        if self._directory is None:
            return None
        try:
            stat = os.stat(self._path)
        except OSError:
            return self._waiting
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark != self._seen:
            self._waiting = self._read() or self._waiting
            self._seen = mark  # last: the watchdog polls, too, and what one thread still reads the other must not skip
        waiting = self._waiting
        return waiting if waiting is not None and waiting.seq > self._answered else None

    def _read(self) -> Optional[Request]:
        value = rundir.read_json(self._path)
        seq = value.get("seq") if value else None
        if value is None or not isinstance(seq, int) or seq <= self._answered:
            return None
        if value.get("ask") not in ("save", "stop"):
            say("the scheduler asks for %r, which this version does not know; going on" % (value.get("ask"),))
            self._answered = seq
            return None
        left, point = value.get("seconds_left"), value.get("safe_point")
        return Request(
            value["ask"] == "stop",
            str(value.get("cause") or ""),
            seq,
            point if isinstance(point, int) else 0,
            time.monotonic() + left if isinstance(left, (int, float)) else float("inf"),
        )

    def close(self, request: Request) -> None:
        """The request needs no further attention, whether it could be fulfilled or not."""
        self._answered = max(self._answered, request.seq)
        waiting = self._waiting
        if waiting is not None and waiting.seq <= self._answered:  # a newer one may have come while this one was served
            self._waiting = None

    def acknowledge(self, checkpoint: str, step: int) -> None:
        """Say that this checkpoint exists and is durable. A failure to say so does not undo it."""
        value = {"attempt": self._attempt, "checkpoint": checkpoint, "step": step, "at": time.time()}
        self._write(rundir.SAVED, value, durable=True)

    def _write(self, name: str, value: "dict[str, object]", durable: bool) -> None:
        if self._directory is None:
            return
        try:
            rundir.write_json(os.path.join(self._directory, name), value, durable=durable)
        except OSError as error:
            say("cannot write %s in the job directory (%s); the scheduler will not see it" % (name, error.strerror))
