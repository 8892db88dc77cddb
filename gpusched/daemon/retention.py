"""So that a disk does not fill silently: history, job directories, checkpoints and output files have limits.

History and job directories go `history_days` after a job's end, checkpoints that gpusched keeps itself
`checkpoint_days` after it (those in a directory the user chose are never touched), and the output file of a running
job that outgrows its limit is cut to its last lines, with a line that says so.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from gpusched.daemon.places import Places, output_path
from gpusched.model.job import Job

log = logging.getLogger(__name__)
DAY = 86_400.0
KEEP_TAIL = 1024 * 1024  # bytes of an output file that are kept when it is cut


def before(days: float, now: float) -> float:
    """The moment (wall clock) before which things are old. 0 days: nothing ever is."""
    return now - days * DAY if days else 0.0


def remove_old(places: Places, alive: frozenset[int], *, history_before: float, checkpoints_before: float) -> int:
    """Remove what jobs that are not alive left long ago (times are wall clock). Returns how many directories went."""
    removed = _remove_below(places.state / "jobs", alive, history_before)
    return removed + _remove_below(places.state / "checkpoints", alive, checkpoints_before)


def _remove_below(root: Path, alive: frozenset[int], before: float) -> int:
    removed = 0
    try:
        entries = list(os.scandir(root))
    except OSError:
        return 0
    for entry in entries:
        try:
            old = entry.name.isdigit() and int(entry.name) not in alive and _newest(entry.path) < before
        except OSError:
            continue  # it goes at this very moment, or is no directory
        if old:
            shutil.rmtree(entry.path, ignore_errors=True)
            removed += 1
    return removed


def _newest(path: str) -> float:
    """The latest modification of a directory or of what lies directly in it."""
    newest = os.lstat(path).st_mtime
    for entry in os.scandir(path):
        newest = max(newest, entry.stat(follow_symlinks=False).st_mtime)
    return newest


def cut_outputs(jobs: Iterable[Job], most_mib: int) -> list[str]:
    """Cut the output files of these (running) jobs that are larger than `most_mib`. Returns their paths."""
    cut = []
    for job in jobs:
        for pattern in {job.spec.output, job.spec.error} - {None}:
            path = output_path(job, pattern)
            if path is not None and _cut(path, most_mib * 1024 * 1024):
                log.warning("job %s: its output %s was larger than %d MiB and was cut", job.key, path, most_mib)
                cut.append(path)
    return cut


def _cut(path: str, most: int) -> bool:
    """The job appends to the file (O_APPEND), so it goes on writing at the new end."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size <= most:
            return False
        tail = os.pread(fd, min(KEEP_TAIL, most), max(0, found.st_size - min(KEEP_TAIL, most)))
        note = f"---- gpusched: this file had {found.st_size} bytes and was cut to its end (output_max) ----\n"
        os.ftruncate(fd, 0)
        os.pwrite(fd, note.encode() + tail, 0)
        return True
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)
        return False
    finally:
        os.close(fd)
