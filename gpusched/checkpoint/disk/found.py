"""What lies in a checkpoint directory: finding checkpoints, and telling whole ones from torn ones. Stdlib only.

Every file that a manifest lists is compared with its size there, and with its SHA-256 where that is asked for. Names
that gpusched never writes are a problem, too. Must not read what is inside the data files, nor change anything.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List

from gpusched.rundir import read_json

FORMAT = 2
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
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
    if manifest.get("seal") != seal_of(manifest) or type(manifest["format"]) is not int:
        raise ValueError("the seal is broken, or was made for nonsense")
    entries = manifest["files"]
    problem = _suspect(entries, manifest["format"]) or compare_files(path, entries, checksums)
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


def newest_good(directory: str) -> Iterator[Checkpoint]:
    """Every checkpoint, newest first, each fully checked when it is reached: stop at the first that is good."""
    for found in reversed(list_checkpoints(directory)):
        yield examine(found.path) if found.good else found


def unlisted(checkpoint: Checkpoint) -> List[str]:
    """Files in a checkpoint's directory that its manifest does not list. They are never read."""
    known = {*checkpoint.manifest.get("files", {}), MANIFEST}
    found = []
    for folder, _, names in os.walk(checkpoint.path):
        within = os.path.relpath(folder, checkpoint.path)
        found += [os.path.normpath(os.path.join(within, name)) for name in names]
    return sorted(set(found) - known)


def compare_others(checkpoint: Checkpoint, names: List[str]) -> str:
    """What is wrong with the bytes of a listed checkpoint's files, but for those whose reader compares them itself."""
    rest = {name: entry for name, entry in checkpoint.manifest["files"].items() if name not in names}
    return compare_files(checkpoint.path, rest, checksums=True)


def compare_files(path: str, files: Dict[str, Any], checksums: bool) -> str:
    """What is wrong with the files that a manifest lists; empty if nothing is."""
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


def seal_of(manifest: Dict[str, Any]) -> str:
    """The checksum that a manifest carries of itself."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return "sha256:" + hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def hash_and_sync(path: str) -> Dict[str, Any]:
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
