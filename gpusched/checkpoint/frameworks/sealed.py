"""Directories that a framework writes under names of its own, made trustworthy: checksums, written last.

Every file is hashed and flushed to the disk, then the manifest, then the names. A directory without a manifest that
fits its files is torn, whatever its name says. Must not read what is inside the files.
"""

import contextlib
import os
from typing import Any, Dict, Sequence

from gpusched.checkpoint.disk import files
from gpusched.rundir import read_json, sync_directory, write_json

_LIMIT = 16 << 20  # bytes of a manifest


def seal(path: str, about: Dict[str, Any]) -> int:
    """Make a directory durable and say so in its manifest, which is the commit. Returns the bytes of its files.

    Raises OSError; then it is still unsealed.
    """
    unseal(path)
    entries = {}
    for folder, _, names in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            entries[os.path.relpath(full, path)] = files.hash_and_sync(full)
        sync_directory(folder)
    manifest = dict(about, format=files.FORMAT, files=entries)
    manifest["seal"] = files.seal_of(manifest)
    write_json(os.path.join(path, files.MANIFEST), manifest)
    sync_directory(os.path.dirname(os.path.abspath(path)))
    return sum(entry["size"] for entry in entries.values())


def unseal(path: str, ours: Sequence[str] = ()) -> None:
    """Before anything in a sealed directory is changed: until it is sealed again it does not count.

    ours: files of the last time to be deleted with the seal. Raises OSError.
    """
    for name in (files.MANIFEST, *ours):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name))
    sync_directory(path)


def problem(path: str, checksums: bool = True) -> str:
    """What is wrong with a sealed directory, every byte compared (else only sizes); empty if nothing is."""
    manifest = about(path)
    if not manifest:
        return "it has no seal: a save was cut off, or it was saved without gpusched"
    if manifest.get("seal") != files.seal_of(manifest) or not isinstance(manifest.get("files"), dict):
        return "its manifest is damaged"
    return files.compare_files(path, manifest["files"], checksums)


def about(path: str) -> Dict[str, Any]:
    """The manifest; empty if there is none."""
    return read_json(os.path.join(path, files.MANIFEST), limit=_LIMIT) or {}
