"""What a database error means and what to do about it, in sentences. It does not act and does not import sqlite3."""

from __future__ import annotations

import errno
from enum import Enum
from pathlib import Path

from gpusched.ports import StoreError


class Trouble(Enum):
    """The kinds of trouble that call for different actions of a person."""

    FULL = "full"
    READ_ONLY = "read-only"
    BUSY = "busy"
    DAMAGED = "damaged"
    DISK = "disk"
    UNREACHABLE = "unreachable"
    OTHER = "other"


# Primary result codes of https://sqlite.org/rescode.html
_KINDS = {
    5: Trouble.BUSY,
    6: Trouble.BUSY,
    8: Trouble.READ_ONLY,
    10: Trouble.DISK,
    11: Trouble.DAMAGED,
    13: Trouble.FULL,
    14: Trouble.UNREACHABLE,
    26: Trouble.DAMAGED,
}


def kind_of(error: BaseException) -> Trouble:
    """The kind of trouble that a database or system error stands for."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _KINDS.get(code & 0xFF, Trouble.OTHER)
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            return Trouble.FULL
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return Trouble.READ_ONLY
        case errno.EIO:
            return Trouble.DISK
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.ELOOP:
            return Trouble.UNREACHABLE
    return Trouble.OTHER


def explained(error: BaseException, path: Path) -> StoreError:
    """The error as a person should read it."""
    what = f"the job database {path}"
    match kind_of(error):
        case Trouble.FULL:
            return StoreError(
                f"{what} could not be written: the disk is full",
                f"make room on the disk that holds {path.parent}; running jobs go on, new work is refused until then",
            )
        case Trouble.READ_ONLY:
            return StoreError(
                f"{what} cannot be written: the file, its folder or its disk is read-only",
                f"check with: ls -ld {path.parent} {path}; if the disk turned read-only by itself, dmesg says why",
            )
        case Trouble.BUSY:
            return StoreError(
                f"{what} is in use by another process",
                f"a second daemon or an open database shell holds it; find it with: fuser {path}",
            )
        case Trouble.DAMAGED:
            return damaged(path, str(error))
        case Trouble.DISK:
            return StoreError(
                f"{what} could not be read or written: the disk reports an error ({error})",
                "look at dmesg and at the disk's health before anything else; then: gpusched doctor",
            )
        case Trouble.UNREACHABLE:
            return StoreError(
                f"{what} cannot be opened ({error})",
                f"the folder {path.parent} must exist and belong to the user that runs the daemon",
            )
        case Trouble.OTHER:
            return StoreError(f"{what} refused a statement ({error})", "this is a bug; see: gpusched doctor")


def damaged(path: Path, detail: str) -> StoreError:
    aside = path.with_name(path.name + ".damaged")
    return StoreError(
        f"{path} is damaged or is not a job database ({detail}); it was left as it is",
        f"see: gpusched doctor. To start with an empty queue keep it as a backup: mv {path} {aside} "
        f"(with {path.name}-wal, if there is one), or put your own backup in its place",
    )


def too_new(path: Path, found: int, known: int) -> StoreError:
    return StoreError(
        f"{path} was written by a newer gpusched (its format is {found}, this version knows up to {known}); "
        "the daemon does not start, nothing was changed",
        f"install the newer gpusched again, or keep the file aside and start empty: mv {path} {path}.newer",
    )
