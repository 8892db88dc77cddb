"""How much host memory a process may still take before somebody is killed for it: machine and control groups.

Linux only; elsewhere, and where nothing can be read, nothing is known (None). Must not allocate anything.
"""

import os
from typing import Dict, Iterator, Optional

_UNLIMITED = 1 << 60  # control groups of version 1 write a huge number for "no limit"


def available(root: str = "/") -> Optional[int]:
    """Bytes, the least that any limit leaves; None if there is no telling. `root` is for tests."""
    found = [amount for amount in [_machine(root), *_groups(root)] if amount is not None]
    return min(found) if found else None


def _machine(root: str) -> Optional[int]:
    kilobytes = _table(os.path.join(root, "proc/meminfo")).get("MemAvailable:")
    return None if kilobytes is None else kilobytes << 10


def _groups(root: str) -> Iterator[Optional[int]]:
    """What each control group above this process leaves. Pages of files can be given back, so they count as free."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="ascii", errors="replace") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return
    for line in lines:
        if len(line) != 3:
            continue
        _, controllers, path = line
        if controllers == "":
            base, limit, used = "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        while True:  # a limit may stand at any level; in a container the path may lead out of what is visible
            folder = os.path.join(root, base, path.lstrip("/"))
            yield _left(folder, limit, used)
            if path in ("", "/"):
                break
            path = os.path.dirname(path)


def _left(folder: str, limit_name: str, used_name: str) -> Optional[int]:
    limit, used = _number(os.path.join(folder, limit_name)), _number(os.path.join(folder, used_name))
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    stat = _table(os.path.join(folder, "memory.stat"))
    reclaimable = stat.get("inactive_file", stat.get("total_inactive_file", 0))
    return max(0, limit - used + reclaimable)


def _number(path: str) -> Optional[int]:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # "max"
        return None


def _table(path: str) -> Dict[str, int]:
    table = {}
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) >= 2 and words[1].isdigit():
                    table[words[0]] = int(words[1])
    except OSError:
        pass
    return table
