"""Starting a command with everything of its own, and ending it with everybody it has started.

A command gets a session of its own. What gets away into another session (torchrun's ranks do) is found by a mark in
its environment, as the supervisor finds it. Linux /proc only. Must not signal a process that does not carry the mark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from gpusched import rundir

PAUSE = 0.02  # seconds between two looks at a process
_LINGER = 2.0  # seconds that what a command leaves behind has, as under the daemon


class Child(Protocol):
    """A process that was started."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it) once it has ended."""


class CannotStart(Exception):
    """The command could not be started; `code` as a shell would end: 127 not found, 126 not executable."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def start(argv: Sequence[str], env: Mapping[str, str], directory: str, log: str) -> Child:
    """Start a command whose output goes to the end of a file. Raises CannotStart."""
    try:
        with open(log, "ab") as output:
            return subprocess.Popen(
                argv, env=dict(env), cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = f"directory {directory}" if missing and not os.path.isdir(directory) else f"command {argv[0]!r}"
        text = f"{what} was not found" if missing else f"{what} cannot be started: {error.strerror}"
        raise CannotStart(text, 127 if missing else 126) from None


def end(child: Child, mark: str, patience: float) -> int:
    """End a process and all that carries the mark: a SIGTERM, and SIGKILL for whoever is left. Its exit code."""
    _to_group(child.pid, signal.SIGTERM)
    try:
        wait(child, patience)
    finally:
        _to_group(child.pid, signal.SIGKILL)
        kill_marked(mark)
    wait(child, 10.0)
    return child.poll() or 0


def wait(child: Child, seconds: float) -> bool:
    """Whether the process has ended within this time."""
    until = time.monotonic() + seconds
    while child.poll() is None:
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE)
    return True


def sweep(mark: str) -> None:
    """After the main process has ended: the others have two seconds, then they are killed."""
    until = time.monotonic() + _LINGER
    while marked(mark):
        if time.monotonic() > until:
            kill_marked(mark)
            return
        time.sleep(PAUSE)


def kill_marked(mark: str) -> None:
    until = time.monotonic() + 10.0
    while (pids := marked(mark)) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE)


def marked(mark: str) -> list[int]:
    """Living processes that were started with this mark in their environment."""
    wanted, found = f"{rundir.ENV_MARK}={mark}".encode(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(name))
    return found


def _to_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
