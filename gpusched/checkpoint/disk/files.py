"""Checkpoints on disk: publishing, checking, listing and pruning. Stdlib only; nothing here needs torch.

A checkpoint is a directory `step-<n>` (`step-<n>.<k>` when a step is saved again) with data files and a
`manifest.json` that names every file with its size and SHA-256 and seals itself with a SHA-256 of its own content.
How one comes to be, so that a kill or a power cut at any moment leaves the older ones as they were:

    1. make `.tmp-<pid>-<random>` and write the data files in it
    2. hash each of them while it is written, and fsync it
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
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Set

from gpusched.rundir import read_json, sync_directory, write_json

FORMAT = 2
MANIFEST, PINS = "manifest.json", ".pins.json"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
_LEFTOVER = re.compile(r"\.(?:tmp|trash)-(\d+)-")
_MANIFEST_LIMIT = 16 << 20
_FILE = re.compile(r"(?:[A-Za-z0-9_-][\w.-]*/)?[A-Za-z0-9_-][\w.-]*")  # a plain name, or one in a folder
_CODE = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".joblib", ".npy", ".npz", ".py", ".pyc", ".so")  # may hold code


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
    try:
        return _described(path, step, repeat, manifest, checksums)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Checkpoint(path, step, repeat, problem="its manifest is damaged")


def _described(path: str, step: int, repeat: int, manifest: Dict[str, Any], checksums: bool) -> Checkpoint:
    """What a manifest says, compared with its files. Raises KeyError, TypeError, ValueError for nonsense."""
    if manifest.get("seal") != _seal(manifest) or type(manifest["format"]) is not int:
        raise ValueError("the seal is broken, or was made for nonsense")
    entries = manifest["files"]
    problem = _suspect(entries, manifest["format"]) or _compare_files(path, entries, checksums)
    return Checkpoint(
        path,
        step,
        repeat,
        problem=problem,
        epoch=int(manifest.get("epoch", 0)),
        batch=int(manifest.get("batch", 0)),
        created_at=float(manifest["created_at"]),
        seconds=float(manifest["seconds"]),
        size=sum(int(entry["size"]) for entry in entries.values()),
        manifest=manifest,
    )


def _suspect(entries: Dict[str, Any], version: int) -> str:
    """Names that gpusched never writes: files elsewhere, and kinds that are executed when they are loaded."""
    for name in entries:
        if not _FILE.fullmatch(name) or ".." in name.split("/"):
            return "its manifest names %r, which is not a file of a checkpoint" % name
        if name.endswith(_CODE) and (name, version) != ("tensors.pt", 1):
            return "it holds %s, a kind of file that may contain code; gpusched never writes nor reads one" % name
    return ""


def unlisted(checkpoint: Checkpoint) -> List[str]:
    """Files in a checkpoint's directory that its manifest does not list. They are never read."""
    known = {*checkpoint.manifest.get("files", {}), MANIFEST}
    found = []
    for folder, _, names in os.walk(checkpoint.path):
        within = os.path.relpath(folder, checkpoint.path)
        found += [os.path.normpath(os.path.join(within, name)) for name in names]
    return sorted(set(found) - known)


def newest_good(directory: str) -> Iterator[Checkpoint]:
    """Every checkpoint, newest first, each fully checked when it is reached: stop at the first that is good."""
    for found in reversed(list_checkpoints(directory)):
        yield examine(found.path) if found.good else found


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
        self.name = name or os.path.basename(_hidden(self.directory, "tmp"))
        self.folder = os.path.join(self.directory, self.name)
        _drafts.add(self.folder)
        try:
            os.makedirs(self.folder, exist_ok=bool(name))
        except BaseException:
            _drafts.discard(self.folder)
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
        manifest["seal"] = _seal(manifest)
        write_json(os.path.join(self.folder, MANIFEST), manifest)  # fsyncs the file and this directory
        path = _rename_to_free_name(self.folder, self.directory, step)
        _drafts.discard(self.folder)
        sync_directory(self.directory)
        return examine(path, checksums=False)

    def discard(self) -> None:
        """Remove it, unless it has been published."""
        if self.folder in _drafts:
            shutil.rmtree(self.folder, ignore_errors=True)
            _drafts.discard(self.folder)


_drafts: Set[str] = set()  # of this process: a thread may be writing one while another clears what others left


def publish(directory: str, step: int, write: Callable[[str], None], about: Dict[str, Any]) -> Checkpoint:
    """Write one checkpoint and return it once it is durable; `write(folder)` puts the data files in place.

    Raises OSError if it cannot be written, and whatever `write` raises; then nothing of it remains and the older
    checkpoints are untouched. (Whoever hashes and flushes the files while writing them uses Draft.)
    """
    with Draft(directory) as draft:
        write(draft.folder)
        names = sorted(os.listdir(draft.folder))
        entries = {name: _hash_and_sync(os.path.join(draft.folder, name)) for name in names}
        return draft.seal(step, entries, about)


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


def prune(
    directory: str, keep: int, keep_every_steps: Optional[int] = None, damaged: Collection[str] = ()
) -> List[str]:
    """Delete all good checkpoints but those of the newest `keep` steps, and torn ones that are older than those.

    With keep_every_steps=k the first good checkpoint at or after each multiple of k steps stays for good, too. Pinned
    ones (see `pin`) stay, and the newest good one always does. Of a step saved several times the last one counts. What
    an interrupted save or deletion of a dead process left is cleared. Returns what was deleted.
    damaged: names of those that look good (their checksums are not compared here) and are known not to be.
    """
    found, pinned = list_checkpoints(directory), pins(directory)
    found = [replace(item, problem="it is damaged") if item.name in damaged else item for item in found]
    by_step = {item.step: item for item in found if item.good}  # the last of a step wins
    newest = list(by_step.values())[-max(1, keep) :]
    milestones: Dict[int, Checkpoint] = {}
    for item in by_step.values():
        if keep_every_steps and item.step >= keep_every_steps:
            milestones.setdefault(item.step // keep_every_steps, item)
    kept = {item.path for item in [*newest, *milestones.values()]}
    deleted = []
    for item in found:
        torn_and_old = not item.good and not item.newer_format and bool(newest) and item.step < newest[0].step
        if item.name not in pinned and (torn_and_old or (item.good and item.path not in kept)):
            delete(item)
            deleted.append(item.path)
    clear_leftovers(directory)
    return deleted


def delete(checkpoint: Checkpoint) -> None:
    """Delete one checkpoint, whatever it is: by renaming it first, so that it is never half there. Raises OSError."""
    trash = _hidden(os.path.dirname(checkpoint.path), "trash")
    os.rename(checkpoint.path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(directory: str, alone: bool = False) -> None:
    """Remove what interrupted saves and deletions of processes that are gone have left. Raises OSError.

    alone: nobody else is writing here (the lock is held). A process id tells little: in containers many are 1.
    """
    for name in os.listdir(directory):
        match, path = _LEFTOVER.match(name), os.path.join(directory, name)
        if not match or path in _drafts:
            continue
        if alone or int(match[1]) == os.getpid() or not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def pins(directory: str) -> Set[str]:
    """Names of the checkpoints that `prune` never deletes. In a file beside them: what is published never changes."""
    names = (read_json(os.path.join(directory, PINS)) or {}).get("pins")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def pin(directory: str, name: str, pinned: bool = True) -> None:
    """Let `prune` never delete the checkpoint of this name, or take that back. Raises OSError."""
    names = pins(directory) | {name} if pinned else pins(directory) - {name}
    write_json(os.path.join(directory, PINS), {"pins": sorted(names)})


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


def compare_others(checkpoint: Checkpoint, names: List[str]) -> str:
    """What is wrong with the bytes of a listed checkpoint's files, but for those whose reader compares them itself."""
    rest = {name: entry for name, entry in checkpoint.manifest["files"].items() if name not in names}
    return _compare_files(checkpoint.path, rest, checksums=True)


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
