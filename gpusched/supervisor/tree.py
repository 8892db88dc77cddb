"""Find the processes of an attempt and signal exactly those. Linux /proc only; must never signal by a stale number.

A process is named by (pid, start time): the kernel reuses pids, but not together with the start time. Signals go
through a pidfd that is opened first and checked afterwards, so that a reused pid is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    started: int  # clock ticks since boot


class Stat(NamedTuple):
    state: str  # R, S, D, T (stopped), Z (zombie), …
    parent: int
    started: int


def stat(pid: int) -> Stat | None:
    """What /proc tells about a process; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()  # the name before it may hold blanks and brackets
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))


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


def marked(variable: str, mark: str) -> list[Process]:
    """Processes that were exec'd with this variable in their environment, and what they forked since.

    Sees only processes that this uid may read; a program that was exec'd with an emptied environment has no mark.
    """
    entry = f"{variable}={mark}".encode()
    found = []
    for pid in _all():
        before = stat(pid)
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                environment = b"\0" + file.readall() + b"\0"
        except OSError:
            continue
        if before is not None and before.state not in "ZX" and b"\0" + entry + b"\0" in environment:
            found.append(Process(pid, before.started))
    return [process for process in found if process.pid != os.getpid()]


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


def kill_marked(variable: str, mark: str, seconds: float) -> int:
    """SIGKILL marked processes and what is below them, until a scan finds none. Returns how many there were.

    Gives up after `seconds` on what hangs in the kernel (a driver, a dead file server) and dies later.
    """
    met: set[Process] = set()
    end, pause = time.monotonic() + seconds, 0.002
    while marked_now := marked(variable, mark):
        found = set(marked_now)
        for process in marked_now:  # children that were exec'd with an emptied environment have no mark
            found.update(descendants(process.pid))
        met |= {process for process in found if send(process, signal.SIGKILL)}
        if time.monotonic() > end:
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return len(met)
