"""Which checkpoints a word means, and what goes wrong with files, in sentences.

A word is a job (`12`, `12_3`, `@`) or a directory (`./ckpt`, `.`), and with a name behind it one checkpoint:
`12/step-130`, `12/130`, `./ckpt/130`. Digits and `@` are jobs; a directory that is called so is written `./12`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpusched.cli.connect import connect, one_job
from gpusched.cli.output import Json
from gpusched.cli.settings import say
from gpusched.cli.text import escape
from gpusched.model.errors import NotAllowed, NotFound, Refused, UsageError

if TYPE_CHECKING:
    from gpusched.checkpoint.disk.files import Checkpoint

_JOB = re.compile(r"@(~\d+)?(_\d+)?|\d+(_\d+)?", re.ASCII)
_NAME = re.compile(r"(?:step-)?\d+(?:\.\d+)?|checkpoint-\d+", re.ASCII)
_TRAINERS = re.compile(r"checkpoint-(\d+)", re.ASCII)  # Hugging Face's, sealed by gpusched
_ALIVE = ("STARTING", "RUNNING", "STOPPING")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of checkpoints, and perhaps one of them."""

    directory: str
    name: str = ""  # such as step-130; empty: all, or the newest good one
    job: Json | None = None

    @property
    def whose(self) -> str:
        """`job 12` or the directory."""
        return f"job {self.job['job']}" if self.job else escape(self.directory)

    @property
    def word(self) -> str:
        """What to type for it."""
        return str(self.job["job"]) if self.job else escape(self.directory)


def find(word: str) -> Place:
    """Where the checkpoints are that a word means. Asks the daemon only about jobs. Raises NotFound, UsageError."""
    head, _, rest = word.partition("/")
    if _JOB.fullmatch(head):
        with connect(names_jobs=True) as client:
            key = one_job(client, head)
            job = client.job(key)
        return _of_job(key, job, rest.strip("/"))
    path = os.path.abspath(os.path.expanduser(word))
    parent, last = os.path.split(path)
    if _NAME.fullmatch(last):
        named = _named(parent, last)
        if last == named or (not os.path.isdir(path) and os.path.lexists(os.path.join(parent, named))):
            return Place(_existing(parent, word), named)
    return Place(_existing(path, word))


def _named(directory: str, text: str) -> str:
    """The name of a checkpoint. A number alone means the last one of that step: `8` may be `step-8.1`."""
    if not text.isdigit():
        return text if text.startswith(("step-", "checkpoint-")) else f"step-{text}"
    saved = re.compile(rf"step-{text}(?:\.(\d+))?|checkpoint-{text}", re.ASCII)
    try:
        names = [name for name in os.listdir(directory) if saved.fullmatch(name)]
    except OSError:  # told by whoever reads it
        names = []
    return max(names, key=lambda name: int(name.partition(".")[2] or 0), default=f"step-{text}")


def _of_job(key: str, job: Json, rest: str) -> Place:
    if "elements" in job:
        raise UsageError(
            f"job {key} is an array, and each of its elements has checkpoints of its own", f"name one: {key}_0"
        )
    directory = job.get("checkpoint_dir")
    if not directory:
        raise NotFound(f"job {key} has no checkpoint directory", f"see: gpusched show {key}")
    if rest and _NAME.fullmatch(rest) is None:
        raise UsageError(f"{rest!r} is not a checkpoint", f"write for example {key}/step-130, or {key}/130")
    return Place(str(directory), _named(str(directory), rest) if rest else "", job)


def _existing(path: str, word: str) -> str:
    if os.path.isdir(path):
        return path
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{word} is not a directory", "name a job (12, @) or a directory of checkpoints")
    try:
        os.stat(path)
    except PermissionError as error:
        raise NotAllowed(f"{word} cannot be reached: {error.strerror}", "ask whoever owns it") from None
    except OSError:
        pass
    raise NotFound(
        f"there is no directory {word}",
        "name a job (12, 12_3, @) or a directory (./ckpt); what can be done with it: gpusched checkpoints --help",
    )


def all_of(place: Place, checksums: bool = False) -> list[Checkpoint]:
    """The checkpoints of a place, oldest first; just the one that was named. Raises NotFound, NotAllowed."""
    from gpusched.checkpoint.disk.files import MANIFEST

    with sentences(place):
        if place.name:
            return [one(place, checksums)]
        found = _listed(place.directory, checksums)
        for item in found:
            manifest = os.path.join(item.path, MANIFEST)
            if item.problem and os.path.exists(item.path) and not os.access(item.path, os.X_OK | os.R_OK):
                raise PermissionError(13, "Permission denied", item.path)
            if item.problem and os.path.exists(manifest) and not os.access(manifest, os.R_OK):
                raise PermissionError(13, "Permission denied", manifest)
        return found


def _listed(directory: str, checksums: bool = False) -> list[Checkpoint]:
    """What the library saved there, and Hugging Face's Trainer under names of its own; [] if it is absent."""
    from gpusched.checkpoint.disk.files import list_checkpoints

    found = list_checkpoints(directory, checksums)
    with contextlib.suppress(FileNotFoundError):
        names = [name for name in os.listdir(directory) if _TRAINERS.fullmatch(name)]
        found += [_examined(os.path.join(directory, name), checksums) for name in names]
    return sorted(found, key=lambda item: (item.step, item.repeat))


def _examined(path: str, checksums: bool) -> Checkpoint:
    from gpusched.checkpoint.disk.files import Checkpoint, examine
    from gpusched.checkpoint.frameworks import sealed

    theirs = _TRAINERS.fullmatch(os.path.basename(path))
    if theirs is None:
        return examine(path, checksums)
    about, problem = sealed.about(path), sealed.problem(path, checksums)
    size = 0 if problem else sum(entry["size"] for entry in about["files"].values())
    created, seconds = (float(about.get(key) or 0.0) for key in ("created_at", "seconds"))
    epoch = int(about.get("epoch") or 0)
    return Checkpoint(path, int(theirs[1]), 0, problem, False, epoch, 0, created, seconds, size, about)


def one(place: Place, checksums: bool = False) -> Checkpoint:
    """The checkpoint that a place names, good or torn. Raises NotFound that lists those there are."""
    path = os.path.join(place.directory, place.name)
    if not os.path.isdir(path):
        with sentences(place):
            names = [item.name for item in _listed(place.directory)]
        raise NotFound(f"there is no {place.name} of {place.whose}", f"there are: {', '.join(names) or 'none'}")
    return _examined(path, checksums)


def chosen(place: Place, checksums: bool = False) -> Checkpoint:
    """The good checkpoint that a place means: the one named, or the newest good one. Raises NotFound, Refused."""
    if place.name:
        found = one(place, checksums)
        if found.problem:
            raise Refused(f"{found.name} of {place.whose} is torn: {found.problem}", "choose another checkpoint")
        return found
    listed = all_of(place)
    for item in reversed(listed):
        if item.good and checksums:
            item = one(Place(place.directory, item.name, place.job), checksums)
        if item.newer_format:
            text = f"{item.name} of {place.whose} cannot be read: {item.problem}"
            raise Refused(text, "update gpusched here, or name an older one")
        if item.good:
            return item
        say(f"skipping {item.name}: {escape(item.problem)}")
    if listed:
        text = f"none of the {len(listed)} checkpoints of {place.whose} is good"
        raise Refused(text, f"see why: gpusched checkpoints verify {place.word}")
    raise NotFound(f"there are no checkpoints of {place.whose}", f"they would be in {escape(place.directory)}")


def in_use(place: Place) -> str:
    """Why a checkpoint there may be needed any moment, in words; empty if nobody saves there."""
    if place.job and place.job.get("state") in _ALIVE:
        return f"job {place.job['job']} is {str(place.job['state']).lower()}"
    return "a run saves there" if _locked(place.directory) else ""


def _locked(directory: str) -> bool:
    """Whether another process holds the directory's lock. Only asks, so that no run ever waits for us."""
    from gpusched.checkpoint.disk import lock

    with contextlib.suppress(OSError), open(os.path.join(directory, lock.NAME), "rb") as file:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
        return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)
    return False


@contextlib.contextmanager
def sentences(place: Place) -> Iterator[None]:
    """Errors of files and of the library as errors of a command."""
    from gpusched.checkpoint.errors import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise Refused(error.message.rstrip("."), error.hint) from None
    except PermissionError as error:
        owner = f"they are {escape(place.job['user'])}'s: ask them" if place.job else "ask whoever owns it"
        raise NotAllowed(f"{escape(error.filename or place.directory)}: {error.strerror}", owner) from None
    except OSError as error:
        where = escape(error.filename or place.directory)
        raise Refused(f"{where}: {error.strerror or error}", "see: df -h, and mount") from None
