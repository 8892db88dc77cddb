"""Checkpoints on disk: publishing, checking, listing and pruning. Stdlib only; nothing here needs torch.

A checkpoint is a directory `step-<n>` (`step-<n>.<k>` when a step is saved again) with data files and a
`manifest.json` that names every file with its size and SHA-256 and seals itself with a SHA-256 of its own content.
How one comes to be, so that a kill or a power cut at any moment leaves the older ones as they were:

    1. make `.tmp-<pid>-<random>` and write the data files in it
    2. hash and fsync each of them
    3. write and fsync the manifest, fsync the directory
    4. rename it to `step-<n>`, fsync the parent          ← from here on it exists

A published directory is never changed in place; deleting renames it to `.trash-…` first.
Must not: read or write what is inside the data files, print, or know anything about training.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List

from gpusched.rundir import read_json, sync_directory, write_json

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
_LEFTOVER = re.compile(r"\.(?:tmp|trash)-(\d+)-")
_MANIFEST_LIMIT = 16 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint directory as found on disk. `problem` is empty if nothing wrong was found."""

    path: str
    step: int  # optimizer steps taken when it was saved
    repeat: int  # 0 for the first save of this step
    problem: str = ""
    newer_format: bool = False
    epoch: int = 0  # the epoch to continue in, counted from 0
    batch: int = 0  # batches of that epoch that are done
    created_at: float = 0.0  # seconds since 1970
    seconds: float = 0.0  # how long writing took
    size: int = 0  # bytes of all data files
    manifest: Dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def good(self) -> bool:
        return not self.problem


def list_checkpoints(directory: str, checksums: bool = False) -> List[Checkpoint]:
    """All checkpoints in a directory, oldest step first, good and torn ones; [] if the directory is absent.

    With `checksums` every byte is read and compared; without, only manifests and sizes are.
    Raises OSError if the directory exists and cannot be read.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [examine(os.path.join(directory, name), checksums) for name in names if _NAME.fullmatch(name)]
    return sorted(found, key=lambda item: (item.step, item.repeat))


def examine(path: str, checksums: bool = True) -> Checkpoint:
    """What is known about one checkpoint directory, and what is wrong with it."""
    match = _NAME.fullmatch(os.path.basename(path))
    step, repeat = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    manifest = read_json(os.path.join(path, MANIFEST), limit=_MANIFEST_LIMIT)
    if manifest is None:
        why = "its manifest is unreadable" if os.path.exists(os.path.join(path, MANIFEST)) else "it has no manifest"
        return Checkpoint(path, step, repeat, problem=why)
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        why = "a newer gpusched wrote it (format %d; this one reads up to %d)" % (version, FORMAT)
        return Checkpoint(path, step, repeat, problem=why, newer_format=True)
    if manifest.get("seal") != _seal(manifest):
        return Checkpoint(path, step, repeat, problem="its manifest is damaged")
    return Checkpoint(
        path,
        step,
        repeat,
        problem=_compare_files(path, manifest["files"], checksums),
        epoch=manifest.get("epoch", 0),
        batch=manifest.get("batch", 0),
        created_at=manifest["created_at"],
        seconds=manifest["seconds"],
        size=sum(entry["size"] for entry in manifest["files"].values()),
        manifest=manifest,
    )


def newest_good(directory: str) -> Iterator[Checkpoint]:
    """Every checkpoint, newest first, each fully checked when it is reached: stop at the first that is good."""
    for found in reversed(list_checkpoints(directory)):
        yield examine(found.path) if found.good else found


def publish(directory: str, step: int, write: Callable[[str], None], about: Dict[str, Any]) -> Checkpoint:
    """Write one checkpoint and return it once it is durable; `write(folder)` puts the data files in place.

    `about` goes into the manifest (epoch, batch, environment, parent…). Raises OSError if it cannot be written, and
    whatever `write` raises; then nothing of it remains and the older checkpoints are untouched.
    """
    began, created = time.monotonic(), time.time()
    if not os.path.isdir(directory):
        os.makedirs(directory, exist_ok=True)
        sync_directory(os.path.dirname(os.path.abspath(directory)))
    temporary = _hidden(directory, "tmp")
    os.mkdir(temporary)
    try:
        write(temporary)
        names = sorted(os.listdir(temporary))
        files = {name: _hash_and_sync(os.path.join(temporary, name)) for name in names}
        manifest = dict(about, format=FORMAT, step=step, created_at=created, files=files)
        manifest["seconds"] = round(time.monotonic() - began, 6)
        manifest["seal"] = _seal(manifest)
        write_json(os.path.join(temporary, MANIFEST), manifest)  # fsyncs the file and this directory
        path = _rename_to_free_name(temporary, directory, step)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory)
    return examine(path, checksums=False)


def prune(directory: str, keep: int) -> List[str]:
    """Delete all but the good checkpoints of the newest `keep` steps, and torn ones that are older than those.

    Returns what was deleted. Of a step saved several times the last one counts; the newest good one always stays. What
    an interrupted save or deletion of a dead process left is cleared, too.
    """
    found = list_checkpoints(directory)
    by_step = {item.step: item for item in found if item.good}  # the last of a step wins
    kept = list(by_step.values())[-max(1, keep) :]
    deleted = []
    for item in found:
        torn_and_old = not item.good and not item.newer_format and bool(kept) and item.step < kept[0].step
        if torn_and_old or (item.good and item not in kept):
            trash = _hidden(directory, "trash")
            os.rename(item.path, trash)
            shutil.rmtree(trash, ignore_errors=True)
            deleted.append(item.path)
    for name in os.listdir(directory):
        match = _LEFTOVER.match(name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    return deleted


def _hidden(directory: str, kind: str) -> str:
    """A name that no listing counts. Inside a container every attempt may have the same pid, hence the random part."""
    return os.path.join(directory, ".%s-%d-%s" % (kind, os.getpid(), os.urandom(6).hex()))


def _rename_to_free_name(temporary: str, directory: str, step: int) -> str:
    """rename(2) replaces an empty directory only, so a published checkpoint is never overwritten."""
    used = [item.repeat for item in list_checkpoints(directory) if item.step == step]
    repeat = max(used) + 1 if used else 0
    path = os.path.join(directory, "step-%d.%d" % (step, repeat) if repeat else "step-%d" % step)
    os.rename(temporary, path)
    return path


def _seal(manifest: Dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return "sha256:" + hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _compare_files(path: str, files: Dict[str, Any], checksums: bool) -> str:
    for name, entry in files.items():
        full = os.path.join(path, name)
        try:
            size = os.path.getsize(full)
            if size != entry["size"]:
                return "%s has %d bytes instead of %d" % (name, size, entry["size"])
            if checksums and _sha256(full) != entry["checksum"]:
                return "%s is damaged: its checksum does not match" % name
        except OSError as error:
            return "%s cannot be read (%s)" % (name, error.strerror)
    return ""


def _hash_and_sync(path: str) -> Dict[str, Any]:
    """Hash a file while another thread waits for the disk: the one needs the processor, the other does not."""
    failed: List[OSError] = []

    def sync() -> None:
        try:
            with _opened(path) as fd:
                os.fsync(fd)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        entry = {"size": os.path.getsize(path), "checksum": _sha256(path)}
    finally:
        thread.join()
    if failed:
        raise failed[0]
    return entry


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(4 << 20)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while True:
            count = file.readinto(buffer)
            if not count:
                return "sha256:" + digest.hexdigest()
            digest.update(view[:count])


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _alive(pid: int) -> bool:
    """Whether such a process exists (perhaps another one: then its leftovers wait for the next time)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

