"""The checkpoint directory of one run: saving into it, loading the newest good one from it, telling what went wrong.

    claim()        nobody else may save there from now on          load()         the newest good checkpoint
    save()         durable when it returns                         save_behind()  a snapshot now, written by a thread
    finished()     how a write behind the training has ended       settle()       the same, waiting for it

A save that fails never ends the training and never costs an older checkpoint. A directory that has vanished is made
again by the next save. With several ranks, ranks/together.py has them do the same thing to the same checkpoint.
Must not decide when to save (run.py does) nor know what the saved tree means.
"""

import errno
import os
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from gpusched.checkpoint.disk import contents, files
from gpusched.checkpoint.disk.lock import Lock
from gpusched.checkpoint.disk.snapshot import Arena, NoRoom
from gpusched.checkpoint.disk.writer import Outcome, Writer
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks import together
from gpusched.checkpoint.ranks.group import ALONE

Tree = Dict[str, Any]
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Vault:
    """Writes and reads checkpoints in one directory; keeps the newest `keep`, and one for every keep_every_steps."""

    def __init__(
        self,
        directory: str,
        keep: int,
        tell: Callable[[str], None],
        keep_every_steps: Optional[int] = None,
        ranks: Any = ALONE,
    ) -> None:
        self.directory, self._keep, self._tell = os.path.abspath(directory), keep, tell
        self._keep_every_steps, self._ranks = keep_every_steps, ranks
        self.latest: Optional[files.Checkpoint] = None  # continued from or last written
        self._lock = Lock(self.directory, tell)
        self._device: Optional[int] = None  # of the directory when it was claimed: an unmounted disk is noticed
        self._claimed = False
        self._writer, self._arena = Writer(), Arena()
        self._behind_impossible = False
        self._damaged: Set[str] = set()  # names of checkpoints that could not be loaded

    # one run at a time

    def claim(self) -> None:
        """Make sure that nobody else saves here, before loading. Creates the directory. Harmless when repeated.

        Raises CheckpointError if another run has it. If nothing can be written there, that is only told: an older
        checkpoint can still be continued, and every save will say what is wrong.
        """
        together.each(self._ranks, lambda: self._claim() if self._ranks.rank == 0 else None)

    def _claim(self) -> None:
        self._claimed = True
        try:
            files.make_directory(self.directory)
            self._device = os.stat(self.directory).st_dev
            self._lock.take()
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            files.clear_leftovers(self.directory, alone=self._lock.certain)
        except OSError as error:
            text = "NOTHING CAN BE SAVED in %s (%s): %s; training goes on without"
            self._tell(text % (self.directory, error.strerror, _remedy(error)))

    def release(self) -> None:
        """Let others save here, and give the memory of snapshots back. Waits for a write. Harmless when repeated."""
        self._writer.wait()
        self._arena.close()
        self._lock.release()
        self._claimed = False

    # loading

    def load(self) -> Optional[Tuple[files.Checkpoint, Tree, int]]:
        """The newest good checkpoint, its content and the number of ranks that saved it; None if there is none at all.

        Torn ones are skipped with a sentence. Raises CheckpointError if there are checkpoints and none can be used:
        a run never starts from zero without its owner knowing.
        """
        try:
            return self._load()
        except OSError as error:
            raise CheckpointError(
                "The checkpoint directory %s cannot be read (%s)." % (self.directory, error.strerror),
                "Check its permissions, or choose another directory.",
            ) from None

    def _load(self) -> Optional[Tuple[files.Checkpoint, Tree, int]]:
        skipped: List[str] = []
        for found in self._candidates():
            problem, loaded = found.problem, None
            if found.newer_format:
                raise CheckpointError("%s cannot be read: %s." % (found.path, problem), "Update gpusched here.")
            if not problem:
                problem, loaded = self._read(found)
            problem = next(filter(None, self._ranks.gather(problem)), "")
            if loaded is not None and not problem:
                self.latest = found
                return (found, *loaded)
            skipped.append(found.name)
            self._damaged.add(found.name)
            self._tell("skipping checkpoint %s: %s" % (found.name, problem))
        if skipped:
            raise CheckpointError(
                "None of the %d checkpoint(s) in %s can be used." % (len(skipped), self.directory),
                "Move that directory away to start from zero, or restore it from a backup.",
            )
        return None

    def _candidates(self) -> List[files.Checkpoint]:
        """What is there, newest first. All ranks go by what the first one sees."""
        found = list(reversed(files.list_checkpoints(self.directory))) if self._ranks.rank == 0 else []
        if self._ranks.size == 1:
            return found
        return [files.examine(path, checksums=False) for path in self._ranks.broadcast([one.path for one in found])]

    def _read(self, found: files.Checkpoint) -> "Tuple[str, Optional[Tuple[Tree, int]]]":
        """(what is wrong with it, its content), every byte compared with the manifest's checksums on the way."""
        strange = files.unlisted(found)
        added = [name for name in strange if contents.belongs(name)]
        if added:
            return "it holds %s, which its manifest does not list" % added[0], None
        if strange:
            text = "%s holds %s, which gpusched did not write; it is not read"
            self._tell(text % (found.name, ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")))
        try:
            mine = contents.read_with_checksums(found.path, self._ranks.rank)
            problem = files.compare_others(found, mine) if self._ranks.rank == 0 else ""
            if problem:
                return problem, None
            return "", contents.read(found.path, self._ranks.rank, found.manifest["files"])
        except ImportError:
            raise
        except CheckpointError as error:
            return error.message.rstrip("."), None
        except OSError as error:
            return "it cannot be read (%s)" % error.strerror, None
        except Exception as error:  # torch and json raise many kinds for a file that they cannot read
            first = (str(error) or "?").splitlines()[0]
            if type(error) is not ValueError:
                first = "it cannot be read (%s: %s)" % (type(error).__name__, first)
            return first, None

    # saving

    def save(self, tree: Tree, about: Dict[str, Any]) -> files.Checkpoint:
        """Write one checkpoint, durable when this returns. On a full disk older ones make room.

        Waits for a write behind the training first; its outcome can still be collected. Raises OSError or
        CheckpointError; then the older checkpoints are as they were.
        """
        self._writer.wait()
        halves = together.each(self._ranks, lambda: contents.encode_halves(tree))
        return self._publish(_step(tree), halves, about, self._tell, self._ranks)

    def save_behind(self, tree: Tree, about: Dict[str, Any]) -> float:
        """Copy the state now and write it in a thread. Returns the seconds that this call has taken.

        The outcome comes by `finished()` or `settle()`. One write at a time: a second call waits for the first, since a
        save that was asked for must not be dropped. Where there is no memory for a copy the state is written before
        this returns, which is told once. Raises CheckpointError for what cannot be stored.
        """
        began = time.monotonic()
        self._writer.wait()
        about = dict(about)
        step, (halves, copied) = _step(tree), together.each(self._ranks, lambda: self._copied(tree))
        if not copied:
            self._writer.begin(lambda notes: self._publish(step, halves, about, notes.append, self._ranks.behind), 0.0)
            self._writer.wait()
            return time.monotonic() - began

        def work(notes: List[str]) -> files.Checkpoint:
            checkpoint = self._publish(step, halves, about, notes.append, self._ranks.behind)
            self._tidy(notes.append)
            return checkpoint

        stall = about["stall"] = time.monotonic() - began  # for `gpusched checkpoints`
        self._writer.begin(work, stall)
        return time.monotonic() - began

    def _copied(self, tree: Tree) -> Tuple[List[contents.Half], bool]:
        """The encoded tree, and whether it is a copy; there may be no memory for one."""
        halves = contents.encode_halves(tree)
        try:
            return contents.copied(halves, self._arena), True
        except NoRoom as error:
            if not self._behind_impossible:
                self._tell("cannot save behind the training: %s; it stands still for every save instead" % error)
            self._behind_impossible = True
            return halves, False

    def prepare(self, tree: Tree) -> None:
        """Have a thread get memory for snapshots of such a tree, ahead of the first `save_behind`: in fresh memory that
        takes eight times as long as later ones. Best when all state is there, after the first optimizer step.
        """
        plans = contents.plans(contents.encode_halves(tree))

        def reserve() -> None:
            try:
                self._arena.reserve(plans)
            except Exception:  # no room, or no device: the first save will tell
                pass

        try:
            threading.Thread(target=reserve, name="gpusched-arena", daemon=True).start()
        except RuntimeError:  # a limit on threads
            pass

    def finished(self) -> Optional[Outcome]:
        """How a write behind the training has ended, once; None if none has. Does not wait."""
        outcome = self._writer.finished()
        for note in outcome.notes if outcome is not None else ():
            self._tell(note)
        return outcome

    def settle(self) -> Optional[Outcome]:
        """Wait for the write behind the training, and return how it ended; None if there was none to report."""
        self._writer.wait()
        return self.finished()

    def _publish(
        self, step: int, halves: List[contents.Half], about: Dict[str, Any], tell: Callable[[str], None], ranks: Any
    ) -> files.Checkpoint:
        """With several ranks they talk by `ranks`: those of the training thread, or of the threads that write."""
        about = dict(about, parent=self.latest.name if self.latest else "")
        try:
            self.latest = self._write(step, halves, about, tell, ranks)
        except OSError as error:
            if error.errno not in _FULL or not ranks.broadcast(self._make_room(tell)):
                raise
            self.latest = self._write(step, halves, about, tell, ranks)
        return self.latest

    def _write(
        self, step: int, halves: List[contents.Half], about: Dict[str, Any], tell: Callable[[str], None], ranks: Any
    ) -> files.Checkpoint:
        def begin() -> files.Draft:
            self._find_directory(tell)
            return files.Draft(self.directory)

        return together.save(
            ranks, begin, lambda folder: contents.write_halves(folder, ranks.rank, halves), step, about
        )

    def _find_directory(self, tell: Callable[[str], None]) -> None:
        """The directory is there, or is made again, and it is still ours. Raises OSError, CheckpointError."""
        if not os.path.isdir(self.directory):
            if self._device is not None and files.device_of(self.directory) != self._device:
                raise CheckpointError(
                    "%s is gone, and so is the disk that it was on." % self.directory,
                    "Mount it again: the next save goes there.",
                )
            files.make_directory(self.directory)
            if self._device is not None:
                tell("the checkpoint directory %s had vanished and was made again" % self.directory)
        if self._claimed and not self._lock.held:  # it could not be had when the disk was full, or this is a fork
            self._lock.take(patience=0.0)
        self._lock.confirm()

    def _make_room(self, tell: Callable[[str], None]) -> bool:
        if self._ranks.rank != 0:
            return False
        try:
            deleted = files.prune(self.directory, 1, self._keep_every_steps, self._damaged)
        except OSError:
            return False
        if deleted:
            tell("the disk is full: deleted %d older checkpoint(s) to make room" % len(deleted))
        return bool(deleted)

    def tidy(self) -> None:
        """Delete what is older than the newest `keep`; a failure to do so is only told. Not while a write runs."""
        if not self._writer.busy:
            self._tidy(self._tell)

    def _tidy(self, tell: Callable[[str], None]) -> None:
        if self._ranks.rank != 0:
            return
        try:
            files.prune(self.directory, self._keep, self._keep_every_steps, self._damaged)
        except OSError as error:
            tell("cannot delete old checkpoints in %s (%s)" % (self.directory, error.strerror))

    def why_not(self, error: Optional[BaseException]) -> str:
        """A sentence on why a save failed, what to do, and what is still there."""
        if isinstance(error, CheckpointError):
            return str(error)
        text = "%s: %s" % (self.directory, getattr(error, "strerror", None) or error)
        if getattr(error, "errno", None) in _FULL:
            text += " (%d MiB free)" % (files.free_space(self.directory) >> 20)
        if isinstance(error, OSError):
            text += "; %s" % _remedy(error)
        last = "the last good one is %s" % self.latest.name if self.latest else "there is no earlier one"
        return "%s; %s" % (text, last)


def _step(tree: Tree) -> int:
    return int(tree["shared"]["position"]["steps"])


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room there, or let fewer be kept (keep=)"
    if error.errno in _CLOSED:
        return "let this user write there, or choose another directory"
    return "see to that disk, or choose another directory"
