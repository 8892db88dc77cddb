"""Files of any program as a checkpoint, for checkpoint-exec: copied into one, and put back from it.

A bundle is an ordinary checkpoint directory (disk/files.py) with `files.tar`, the files that were named, and
`made.tar`, what a save command has put into the folder that it was given; so `gpusched checkpoints` lists it, and a
torn one is never used. Must not look into the files, nor run anything.
"""

import contextlib
import glob
import os
import shutil
import tarfile
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.errors import CheckpointError

FILES, MADE = "files.tar", "made.tar"
_STILL = 0.5  # seconds that a file has not been written to before it is copied while its program runs
_PAUSE = 0.05
_MOST_STAMPS = 10000

Stamp = Tuple[str, int, int, int]


def save(directory: str, patterns: Sequence[str], made: str, still_until: Optional[float] = None) -> files.Checkpoint:
    """Copy files (paths or glob patterns, directories whole) and the folder `made` ("": none); durable on return.

    still_until: the program runs, so wait (until this time.monotonic()) for a moment at which no file changes.
    Raises CheckpointError if nothing matches a pattern or the files never stand still, OSError from the disk.
    """
    while True:
        paths = _matching(patterns)
        before = list(_stamps(paths))
        if still_until is not None and not _still(before):
            _wait(still_until, before)
            continue
        try:
            found = _publish(directory, paths, made, before)
        except OSError as error:
            if still_until is None or error.errno is not None:
                raise
            _wait(still_until, before)  # a file became shorter while it was copied
            continue
        if still_until is None or list(_stamps(_matching(patterns))) == before:
            return found
        files.delete(found)
        _wait(still_until, before)


def _publish(directory: str, paths: List[str], made: str, stamps: Sequence[Stamp]) -> files.Checkpoint:
    def write(folder: str) -> None:
        with tarfile.open(os.path.join(folder, FILES), "w") as tar:
            for number, path in enumerate(paths):
                tar.add(path, arcname=str(number))
        if made:
            with tarfile.open(os.path.join(folder, MADE), "w") as tar:
                tar.add(made, arcname=".")

    existing = files.list_checkpoints(directory)
    step = existing[-1].step + 1 if existing else 1
    about = {"bundle": [os.path.abspath(path) for path in paths], "stamps": list(stamps[:_MOST_STAMPS])}
    return files.publish(directory, step, write, about)


def newest(directory: str, tell: Any) -> Optional[files.Checkpoint]:
    """The newest good bundle; None if nothing was ever saved. Raises CheckpointError if none of those there is good."""
    torn: List[str] = []
    for found in files.newest_good(directory):
        if found.good and "bundle" in found.manifest:
            return found
        torn.append(found.name)
        tell("skipping %s: %s" % (found.name, found.problem or "checkpoint-exec did not write it"))
    if torn:
        raise CheckpointError(
            "None of the %d saved states in %s can be used." % (len(torn), directory),
            "Move that directory away to start from zero.",
        )
    return None


def restore(found: files.Checkpoint) -> int:
    """Put the files back where they were; what is there now is replaced. Their number. Raises OSError.

    Nothing is copied if all of them are still there, untouched since they were saved.
    """
    paths: List[str] = found.manifest["bundle"]
    stamps = [tuple(stamp) for stamp in found.manifest.get("stamps", ())]
    if not paths or (len(stamps) < _MOST_STAMPS and list(_stamps(paths)) == stamps):
        return 0
    with tarfile.open(os.path.join(found.path, FILES)) as tar:
        members: Dict[str, List[tarfile.TarInfo]] = {}
        for member in tar.getmembers():
            members.setdefault(member.name.split("/")[0], []).append(member)
        for number, path in enumerate(paths):
            _put(tar, members[str(number)], path)
    return len(paths)


def unpack_made(found: files.Checkpoint, folder: str) -> bool:
    """What the save command had made, into an empty folder. Whether there is any. Raises OSError."""
    path = os.path.join(found.path, MADE)
    if not os.path.exists(path):
        return False
    with tarfile.open(path) as tar:
        _extract(tar, tar.getmembers(), folder)
    return True


def _put(tar: tarfile.TarFile, members: List[tarfile.TarInfo], path: str) -> None:
    """Beside its place first, then renamed: a kill in between leaves the old or the new, or is repaired by the next
    start, which restores again."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = "%s.gpusched-%d" % (path, os.getpid())
    old = beside + "-old"
    shutil.rmtree(beside, ignore_errors=True)
    os.mkdir(beside)
    try:
        _extract(tar, members, beside)
        fresh = os.path.join(beside, members[0].name)
        if os.path.isdir(path) and not os.path.islink(path):
            os.rename(path, old)
        elif os.path.isdir(fresh) and os.path.lexists(path):
            os.unlink(path)
        os.replace(fresh, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _extract(tar: tarfile.TarFile, members: List[tarfile.TarInfo], folder: str) -> None:
    """Nothing outside of the folder: Pythons that have the filter check that, and older ones get it checked here."""
    for member in members:
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise OSError("unsafe name in the archive: %s" % member.name)
    if hasattr(tarfile, "tar_filter"):
        tar.extractall(folder, members, filter="tar")
    else:
        tar.extractall(folder, members)


def _matching(patterns: Sequence[str]) -> List[str]:
    found: Dict[str, None] = {}
    for pattern in patterns:
        paths = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise CheckpointError(
                "There is nothing to save: %s does not exist." % pattern, "Name files that the program writes."
            )
        found.update(dict.fromkeys(os.path.normpath(path) for path in paths))
    return list(found)


def _stamps(paths: Sequence[str]) -> Iterator[Stamp]:
    for path in paths:
        for place, _, names in os.walk(path) if os.path.isdir(path) else [("", [], [path])]:
            for name in sorted(names):
                full = os.path.join(place, name)
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(full)
                    yield os.path.abspath(full), info.st_mtime_ns, info.st_size, info.st_ino


def _still(stamps: Sequence[Stamp]) -> bool:
    limit = time.time_ns() - int(_STILL * 1e9)
    return all(changed < limit for _, changed, _, _ in stamps)


def _wait(until: float, stamps: Sequence[Stamp]) -> None:
    if time.monotonic() > until:
        newest_one = max(stamps, key=lambda stamp: stamp[1])[0]
        raise CheckpointError(
            "The files to save never stand still: %s changes all the time." % newest_one,
            "Give a --save command that writes a complete state, or save at stops only.",
        )
    time.sleep(_PAUSE)
