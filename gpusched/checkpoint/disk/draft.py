"""A checkpoint on its way: a hidden directory that becomes a published one in a single rename. Stdlib only.

The steps are told in files.py. Must not know what is in the data files.
"""

import os
import shutil
import time
from typing import Any, Callable, Dict, Set

from gpusched.checkpoint.disk.found import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    examine,
    hash_and_sync,
    list_checkpoints,
    seal_of,
)
from gpusched.rundir import sync_directory, write_json

open_drafts: Set[str] = set()  # of this process: a thread may be writing one while another clears what others left


class Draft:
    """A checkpoint that is being written: a hidden directory, which becomes a published one by `seal`.

        with Draft(directory) as draft:
            entries = …                          # write files into draft.folder, each flushed to the disk
            checkpoint = draft.seal(step, entries, about)

    Left without a seal, nothing of it remains. Other processes that write into the same draft take its `name`.
    Raises OSError if the directory cannot be made.
    """

    def __init__(self, directory: str, name: str = "") -> None:
        self._began, self._created = time.monotonic(), time.time()
        self.directory = os.path.abspath(directory)
        make_directory(self.directory)
        self.name = name or os.path.basename(hidden_name(self.directory, "tmp"))
        self.folder = os.path.join(self.directory, self.name)
        open_drafts.add(self.folder)
        try:
            os.makedirs(self.folder, exist_ok=bool(name))
        except BaseException:
            open_drafts.discard(self.folder)
            raise

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def seal(self, step: int, entries: Dict[str, Dict[str, Any]], about: Dict[str, Any]) -> Checkpoint:
        """Publish it; it is durable when this returns. Raises OSError; then it is still a draft.

        entries: file name (with at most one "/") → {"size": bytes, "checksum": "sha256:…"} of every file, all of them
        flushed to the disk by whoever wrote them. about: what else the manifest says (epoch, batch, environment…).
        """
        for name in {os.path.dirname(name) for name in entries} - {""}:
            sync_directory(os.path.join(self.folder, name))
        manifest = dict(about, format=FORMAT, step=step, created_at=self._created, files=entries)
        manifest["seconds"] = round(time.monotonic() - self._began, 6)
        manifest["seal"] = seal_of(manifest)
        write_json(os.path.join(self.folder, MANIFEST), manifest)  # fsyncs the file and this directory
        path = _rename_to_free_name(self.folder, self.directory, step)
        open_drafts.discard(self.folder)
        sync_directory(self.directory)
        return examine(path, checksums=False)

    def discard(self) -> None:
        """Remove it, unless it has been published."""
        if self.folder in open_drafts:
            shutil.rmtree(self.folder, ignore_errors=True)
            open_drafts.discard(self.folder)


def publish(directory: str, step: int, write: Callable[[str], None], about: Dict[str, Any]) -> Checkpoint:
    """Write one checkpoint and return it once it is durable; `write(folder)` puts the data files in place.

    Raises OSError if it cannot be written, and whatever `write` raises; then nothing of it remains and the older
    checkpoints are untouched. (Whoever hashes and flushes the files while writing them uses Draft.)
    """
    with Draft(directory) as draft:
        write(draft.folder)
        names = sorted(os.listdir(draft.folder))
        entries = {name: hash_and_sync(os.path.join(draft.folder, name)) for name in names}
        return draft.seal(step, entries, about)


def _rename_to_free_name(temporary: str, directory: str, step: int) -> str:
    """rename(2) replaces an empty directory only, so a published checkpoint is never overwritten."""
    used = [item.repeat for item in list_checkpoints(directory) if item.step == step]
    repeat = max(used) + 1 if used else 0
    path = os.path.join(directory, "step-%d.%d" % (step, repeat) if repeat else "step-%d" % step)
    os.rename(temporary, path)
    return path


def hidden_name(directory: str, kind: str) -> str:
    """A name that no listing counts. Inside a container every attempt may have the same pid, hence the random part."""
    return os.path.join(directory, ".%s-%d-%s" % (kind, os.getpid(), os.urandom(6).hex()))


def make_directory(directory: str) -> None:
    """Make a directory and its parents, each name flushed to the disk, so that no power cut takes it back. OSError."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        sync_directory(os.path.dirname(path))


def device_of(path: str) -> int:
    """The file system that a path is on, or would be on if it existed."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev


def free_space(path: str) -> int:
    """Bytes that can still be written where a path is, or would be; 0 if there is no telling."""
    try:
        while not os.path.exists(path):
            path = os.path.dirname(path)
        return shutil.disk_usage(path).free
    except OSError:
        return 0
