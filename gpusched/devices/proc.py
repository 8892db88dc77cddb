"""A few facts of /proc about other processes, cheap enough to ask each second. Reads only; signals nothing.

Everything here may be asked about a process that ends meanwhile, or that belongs to somebody else: the answer is None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

# No Linux gives out a pid as large as this (PID_MAX_LIMIT): a pid at or above it is a simulated stranger's.
NO_REAL_PID = 1 << 22
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_LONGEST_ENVIRONMENT = 8 << 20


@dataclass(frozen=True, slots=True)
class Stat:
    """One line of /proc/<pid>/stat. Times are clock ticks; pid and `start` (since boot) name a process for ever."""

    parent: int
    start: int
    cpu: int
    image: int  # where its environment lies: changes with each exec; 0 if that is not for us to know
    kernel: bool
    zombie: bool


def pids() -> list[int]:
    """Every process that can be seen now."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def stat(pid: int) -> Stat | None:
    """What the kernel says of a process, or None."""
    data = _read(f"/proc/{pid}/stat", 4096)
    if not data:
        return None
    # The name in parentheses may hold anything, parentheses and spaces too: count from the last one.
    fields = data[data.rfind(b")") + 2 :].split()
    try:
        return Stat(
            parent=int(fields[1]),
            start=int(fields[19]),
            cpu=int(fields[11]) + int(fields[12]),
            image=int(fields[47]) if len(fields) > 47 else 0,
            kernel=bool(int(fields[6]) & _KERNEL_THREAD),
            zombie=fields[0] in (b"Z", b"X"),
        )
    except (IndexError, ValueError):
        return None


def age(found: Stat, now: float) -> float:
    """Seconds since the process was forked. `now` is time.clock_gettime(CLOCK_BOOTTIME)."""
    return now - found.start / TICKS_PER_SECOND


def owner(pid: int) -> int | None:
    """The uid that a process runs as (0 for one that hides its memory)."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def environment(pid: int) -> bytes | None:
    """The environment it was exec'd with, NUL-separated; None if unreadable. Empty in the middle of an exec."""
    return _read(f"/proc/{pid}/environ", _LONGEST_ENVIRONMENT)


def variable(environ: bytes, name: str) -> str | None:
    """One variable of an `environment`; the first counts, as for getenv."""
    key = name.encode() + b"="
    if environ.startswith(key):
        start = len(key)
    else:
        found = environ.find(b"\0" + key)
        if found < 0:
            return None
        start = found + 1 + len(key)
    end = environ.find(b"\0", start)
    return environ[start : end if end >= 0 else len(environ)].decode(errors="replace")


def resident(pid: int) -> int:
    """Bytes of memory that are present for it, shared ones in full; 0 if it is gone."""
    data = _read(f"/proc/{pid}/statm", 256)
    return int(data.split()[1]) * _PAGE if data else 0


def proportional(pid: int) -> int | None:
    """Bytes of its memory with each shared page divided by its sharers (PSS); None if unreadable. Slow: up to ms."""
    data = _read(f"/proc/{pid}/smaps_rollup", 4096) or b""
    for line in data.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None


def exists(pid: int) -> bool:
    """Is there such a process, even one that /proc hides from us? Sends nothing to it."""
    if os.path.exists(f"/proc/{pid}"):
        return True
    try:
        os.close(os.pidfd_open(pid))
    except (OSError, OverflowError):
        return False
    return True


def _read(path: str, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, limit if limit <= 4096 else 65536)
        while limit > 4096 and len(data) < limit and (more := os.read(fd, 65536)):
            data += more
    except OSError:
        return None
    finally:
        os.close(fd)
    return data
