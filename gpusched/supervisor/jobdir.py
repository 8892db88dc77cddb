"""The job directory as a supervisor sees it: files that a user can replace by anything at any moment.

Every read is bounded, never follows a link, never waits (a FIFO), takes regular files only and checks every field.
What does not fit is treated as absent; nothing here raises because of what a job has written.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gpusched import rundir

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_LIMIT = 64 * 1024  # bytes of `watching` and `saved`, and of the end of progress.jsonl
PATH_LIMIT = 4096
METRICS_LIMIT = 64
NAME_LIMIT = 128
Trace = tuple[int, int, int]  # inode, size, mtime in ns: equal means unchanged


@contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def traces(job_dir: str) -> dict[str, Trace]:
    """What `watching`, `saved` and `progress.jsonl` look like from outside. Absent files are absent here."""
    found = {}
    with suppress(OSError), _directory(job_dir) as directory:
        for name in (rundir.WATCHING, rundir.SAVED, rundir.PROGRESS):
            with suppress(OSError):
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                found[name] = (info.st_ino, info.st_size, info.st_mtime_ns)
    return found


def _read(job_dir: str, name: str, *, end: bool = False) -> bytes:
    """A whole small file, or the last FILE_LIMIT bytes of a growing one. b"" for anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        with _directory(job_dir) as directory:
            fd = os.open(name, flags, dir_fd=directory)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or (info.st_size > FILE_LIMIT and not end):
                return b""
            return os.pread(fd, FILE_LIMIT, max(0, info.st_size - FILE_LIMIT))
        finally:
            os.close(fd)
    except OSError:
        return b""


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # ValueError also for bad UTF-8 and for numbers of thousands of digits
        return None
    return value if isinstance(value, dict) else None


def _text(value: object, limit: int) -> str | None:
    """A string that can be stored and printed: no controls, no lone surrogates."""
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        return None
    bad = any(ch < " " or "\x7f" <= ch <= "\x9f" or "\ud800" <= ch <= "\udfff" for ch in value)
    return None if bad else value


def _number(value: object) -> int | float | None:
    """A finite number that fits 64 bits; True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    return value if math.isfinite(value) else None


def _count(value: object) -> int | None:
    number = _number(value)
    return number if isinstance(number, int) and number >= 0 else None


def watcher(job_dir: str) -> int | None:
    """The pid that `watching` announces. Whether it is a living process of the job is for the caller to check."""
    value = _object(_read(job_dir, rundir.WATCHING)) or {}
    pid = _count(value.get("pid"))
    return pid if pid is not None and 1 < pid < 1 << 31 else None


def saved(job_dir: str, attempt: int) -> dict[str, Any] | None:
    """The acknowledgement of this very attempt: {"checkpoint", "step", "at"}, or None.

    An acknowledgement of an earlier attempt is not one: it says nothing about what this attempt has done.
    """
    value = _object(_read(job_dir, rundir.SAVED))
    if value is None:
        return None
    number = value.get("attempt")
    if isinstance(number, bool) or number not in (attempt, str(attempt)):  # shell scripts write strings
        return None
    checkpoint = _text(value.get("checkpoint"), PATH_LIMIT)
    if checkpoint is None:
        return None
    at = _number(value.get("at"))
    return {"checkpoint": checkpoint, "step": _count(value.get("step")), "at": time.time() if at is None else at}


def progress(job_dir: str) -> dict[str, Any]:
    """The last complete line that makes sense: epoch, step, total, time and metrics (numbers only); or {}."""
    data = _read(job_dir, rundir.PROGRESS, end=True)
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")  # what follows the last newline is still being written
    for line in [line for line in reversed(lines) if line][:16]:
        value = _object(line)
        if value is None:
            continue
        known = {name: _number(value.get(name)) for name in ("epoch", "step", "total", "time")}
        kept: dict[str, Any] = {name: number for name, number in known.items() if number is not None}
        metrics = value.get("metrics")
        if isinstance(metrics, dict):
            pairs = [(_text(name, NAME_LIMIT), _number(number)) for name, number in metrics.items()]
            good = [(name, number) for name, number in pairs if name is not None and number is not None]
            kept["metrics"] = dict(good[:METRICS_LIMIT])
        if kept:
            return kept
    return {}


def write_request(job_dir: str, request: dict[str, Any]) -> bool:
    """Publish a request: whole or not at all. False if the job directory cannot be written any more."""
    temporary = f"{rundir.REQUEST}.tmp-{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with _directory(job_dir) as directory:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            fd = os.open(temporary, flags, 0o644, dir_fd=directory)
            try:
                os.write(fd, json.dumps(request).encode())
            finally:
                os.close(fd)
            os.rename(temporary, rundir.REQUEST, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        return False
    return True
