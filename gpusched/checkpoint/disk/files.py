"""Checkpoints on disk: publishing, checking, listing and pruning. Stdlib only; nothing here needs torch.

A checkpoint is a directory `step-<n>` (`step-<n>.<k>` when a step is saved again) with data files and a
`manifest.json` that names every file with its size and SHA-256 and seals itself with a SHA-256 of its own content.
How one comes to be, so that a kill or a power cut at any moment leaves the older ones as they were:

    1. make `.tmp-<pid>-<random>` and write the data files in it
    2. hash each of them while it is written, and fsync it
    3. write and fsync the manifest, fsync the directory
    4. rename it to `step-<n>`, fsync the parent          ← from here on it exists

A published directory is never changed in place; deleting renames it to `.trash-…` first.

found.py finds and checks, draft.py writes, keeping.py deletes; what others use of them is named here.
Must not: read or write what is inside the data files, print, or know anything about training.
"""

from gpusched.checkpoint.disk.draft import Draft, device_of, free_space, make_directory, publish
from gpusched.checkpoint.disk.found import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    compare_files,
    compare_others,
    examine,
    hash_and_sync,
    list_checkpoints,
    newest_good,
    seal_of,
    unlisted,
)
from gpusched.checkpoint.disk.keeping import PINS, clear_leftovers, delete, pin, pins, prune

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PINS",
    "Checkpoint",
    "Draft",
    "clear_leftovers",
    "compare_files",
    "compare_others",
    "delete",
    "device_of",
    "examine",
    "free_space",
    "hash_and_sync",
    "list_checkpoints",
    "make_directory",
    "newest_good",
    "pin",
    "pins",
    "prune",
    "publish",
    "seal_of",
    "unlisted",
]
