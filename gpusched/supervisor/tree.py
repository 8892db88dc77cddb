"""Find the processes of an attempt and signal exactly those. Linux /proc only; must never signal by a stale number.

A process is named by (pid, start time): the kernel reuses pids, but not together with the start time. Signals go
through a pidfd that is opened first and checked afterwards, so that a reused pid is never hit.

A process in the middle of an exec has no environment yet, for microseconds or for as long as a slow disk takes: whoever
looks for marks then looks again until it shows what it is.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

BEGINNING = 4  # descriptor, see marked
UNBORN_WITHIN = 1.0  # seconds that an exec may take before it is no longer waited for
_NO_EXEC = 0x00200000 | 0x00000004  # kernel threads, and processes that are ending: they will never have one


class Process(NamedTuple):
    pid: int
    started: int  # clock ticks since boot


class Stat(NamedTuple):
    state: str  # R, S, D, T (stopped), Z (zombie), …
    parent: int
    started: int
    image: int  # where its environment ends, another place after each exec; 0 in the middle of an exec, -1 for ever


def stat(pid: int) -> Stat | None:
    """What /proc tells about a process; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()  # the name before it may hold blanks and brackets
    image = -1 if int(fields[6]) & _NO_EXEC else int(fields[48])
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]), image)


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(root: int) -> list[Process]:
    """All living processes below `root` (not itself), parents before children; zombies are left out.

    Complete for a subreaper, because a process whose parent dies becomes its child, whatever it has done to its
    session, group or environment. What forks during the scan may be missed: repeat until nothing is left.
    """
    children: dict[int, list[int]] = {}
    seen: dict[int, Stat] = {}
    for pid in _all():
        if (found := stat(pid)) is not None:
            seen[pid] = found
            children.setdefault(found.parent, []).append(pid)
    below: list[Process] = []
    waiting = list(children.get(root, ()))
    for pid in waiting:  # grows while it is walked
        waiting.extend(children.get(pid, ()))
        if seen[pid].state not in "ZX":
            below.append(Process(pid, seen[pid].started))
    return below


def is_below(pid: int, root: int) -> bool:
    """Whether a living process is a descendant of `root`."""
    for _ in range(4096):  # a bound, because parents can change under our feet
        found = stat(pid)
        if found is None or found.state in "ZX" or found.parent <= 1:
            return False
        if found.parent == root:
            return True
        pid = found.parent
    return False


def marked(variable: str, mark: str, forked: str | None = None, seconds: float = UNBORN_WITHIN) -> list[Process]:
    """Processes that were exec'd with this variable in their environment, and what they forked since.

    forked: a directory that the processes to be found hold as descriptor BEGINNING from their fork to their exec.
    Sees only processes that this uid may read; a program that was exec'd with an emptied environment has no mark.
    Waits `seconds` for those in the middle of an exec.
    """
    entry = f"{variable}={mark}".encode()
    found, end = [], time.monotonic() + seconds
    for pid in _all():
        before = stat(pid)
        if before is None or before.state in "ZX" or pid == os.getpid():
            continue
        # First the descriptor, which an exec closes, then the environment, which it brings: so neither is missed.
        if (forked is not None and _holds(pid, forked)) or entry in _environment(pid, end).split(b"\0"):
            found.append(Process(pid, before.started))
    return found


def _holds(pid: int, directory: str) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/fd/{BEGINNING}", directory)
    except OSError:
        return False


def _environment(pid: int, end: float) -> bytes:
    """What a process was exec'd with; empty if that cannot be known by `end` (monotonic), or is not ours to know."""
    before = stat(pid)
    while before is not None:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                environment = file.readall()
        except OSError:
            return b""
        # It is empty in the middle of an exec, too: so only what lies between two looks at the same program counts.
        after = stat(pid)
        known = after is not None and after.image == before.image != 0
        if environment or known or time.monotonic() > end:
            return environment
        time.sleep(0.001)
        before = after
    return b""


def send(process: Process, number: int) -> bool:
    """Send a signal to this very process. False if it is gone (or is not ours to signal)."""
    # 1. the pidfd pins whatever has the pid now; 2. only then is the start time compared; 3. the signal goes
    # through the pidfd. If the pid was reused before 1, step 2 sees it; after 1 it cannot matter.
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = stat(process.pid)
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def kill_marked(variable: str, mark: str, seconds: float, forked: str | None = None) -> int:
    """SIGKILL marked processes and what is below them, until a scan finds none. Returns how many there were.

    forked: see marked. Gives up after `seconds` on what hangs in the kernel (a driver, a dead file server) and dies
    later.
    """
    met: set[Process] = set()
    end, pause = time.monotonic() + seconds, 0.002
    while marked_now := marked(variable, mark, forked):
        found = set(marked_now)
        for process in marked_now:  # children that were exec'd with an emptied environment have no mark
            found.update(descendants(process.pid))
        met |= {process for process in found if send(process, signal.SIGKILL)}
        if time.monotonic() > end:
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return len(met)
