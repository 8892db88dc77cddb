"""The checkpoint directory of one run: saving into it, loading the newest good one from it, telling what went wrong.

Must not decide when to save (run.py does) nor know what the saved tree means.
"""

import errno
import os
import shutil
from typing import Any, Callable, Dict, List, Optional, Tuple

from gpusched.checkpoint.disk import contents, files
from gpusched.checkpoint.errors import CheckpointError


class Vault:
    """Writes and reads checkpoints in one directory; keeps the newest `keep` good ones."""

    def __init__(self, directory: str, keep: int, tell: Callable[[str], None]) -> None:
        self.directory, self._keep, self._tell = os.path.abspath(directory), keep, tell
        self.latest: Optional[files.Checkpoint] = None  # continued from or last written

    def load(self) -> Optional[Tuple[files.Checkpoint, Dict[str, Any]]]:
        """The newest good checkpoint and its content; None if there is none at all.

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

    def _load(self) -> Optional[Tuple[files.Checkpoint, Dict[str, Any]]]:
        skipped: List[str] = []
        for found in files.newest_good(self.directory):
            problem = found.problem
            if found.newer_format:
                raise CheckpointError("%s cannot be read: %s." % (found.path, problem), "Update gpusched here.")
            if not problem:
                try:
                    tree = contents.read(found.path)
                    self.latest = found
                    return found, tree
                except ImportError:
                    raise
                except Exception as error:  # torch raises many kinds for a file that it cannot read
                    problem = "it cannot be read (%s: %s)" % (type(error).__name__, error)
            skipped.append(found.name)
            self._tell("skipping checkpoint %s: %s" % (found.name, problem))
        if skipped:
            raise CheckpointError(
                "None of the %d checkpoint(s) in %s can be used." % (len(skipped), self.directory),
                "Move that directory away to start from zero, or restore it from a backup.",
            )
        return None

    def save(self, tree: Dict[str, Any], about: Dict[str, Any]) -> files.Checkpoint:
        """Write one checkpoint, durable when this returns. On a full disk all but the newest good one make room.

        Raises OSError or CheckpointError; then the older checkpoints are as they were.
        """
        about = dict(about, parent=self.latest.name if self.latest else "")
        step = int(tree["position"]["steps"])
        try:
            self.latest = self._publish(step, tree, about)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not self._make_room():
                raise
            self.latest = self._publish(step, tree, about)
        return self.latest

    def _publish(self, step: int, tree: Dict[str, Any], about: Dict[str, Any]) -> files.Checkpoint:
        return files.publish(self.directory, step, lambda folder: contents.write(folder, tree), about)

    def _make_room(self) -> bool:
        try:
            deleted = files.prune(self.directory, keep=1)
        except OSError:
            return False
        if deleted:
            self._tell("the disk is full: deleted %d older checkpoint(s) to make room" % len(deleted))
        return bool(deleted)

    def tidy(self) -> None:
        """Delete what is older than the newest `keep`; a failure to do so is only told."""
        try:
            files.prune(self.directory, self._keep)
        except OSError as error:
            self._tell("cannot delete old checkpoints in %s (%s)" % (self.directory, error.strerror))

    def why_not(self, error: BaseException) -> str:
        """A sentence on why a save failed, and what is still there."""
        if isinstance(error, CheckpointError):
            return str(error)
        text = "%s: %s" % (self.directory, getattr(error, "strerror", None) or error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            text += " (%d MiB free)" % (shutil.disk_usage(self.directory).free >> 20)
        last = "the last good one is %s" % self.latest.name if self.latest else "there is no earlier one"
        return "%s; %s" % (text, last)
