"""One run at a time saves into a checkpoint directory: a lock on its file `.lock`.

A POSIX record lock (lockf), not a flock: a flock belongs to the open file, so a data-loader worker that was forked
while it was held and outlives its trainer would keep it for seconds. A POSIX lock belongs to the process, which has
three consequences that are dealt with here:

    1. two Runs of one process do not exclude each other: `_held` does that
    2. closing any descriptor of the file in this process drops the lock (somebody copies the directory): it is taken
       again before every save
    3. a forked child does not have it

The file says who holds it; it stays when the lock is released, since deleting it would race with the next holder.
Must not be needed: a file system without locks is told about once, and used.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
import weakref
from typing import Any, Callable, Dict, Optional

from gpusched import rundir
from gpusched.checkpoint.errors import CheckpointError

NAME = ".lock"
PATIENCE = 10.0  # seconds: an older attempt of the same job may just be ending
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_BUSY = (errno.EACCES, errno.EAGAIN)
_held: "weakref.WeakValueDictionary[str, Lock]" = weakref.WeakValueDictionary()


class Lock:
    """The right to save into one directory. Released when it is garbage, too."""

    def __init__(self, directory: str, tell: Callable[[str], None]) -> None:
        self._directory, self._path, self._tell = directory, os.path.join(directory, NAME), tell
        self._fd, self._pid, self._unsupported = -1, 0, False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()

    @property
    def held(self) -> bool:
        return self._fd >= 0 and self._pid == os.getpid()

    @property
    def certain(self) -> bool:
        """Held, on a file system that keeps others out."""
        return self.held and not self._unsupported

    def take(self, patience: float = PATIENCE) -> None:
        """Get the lock, waiting `patience` seconds for another process to end. Harmless if it is held already.

        Raises CheckpointError if another run has it, OSError if its file cannot be written.
        """
        if self.held:
            return
        other = _held.get(os.path.realpath(self._directory))
        if other is not None and other is not self and other.held:
            raise CheckpointError(
                "Another Run of this process saves into %s." % self._directory,
                "Give each Run a directory of its own (directory=). In a notebook, delete the old Run first.",
            )
        self._fd, self._pid = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), os.getpid()
        try:
            self._wait(patience)
            _held[os.path.realpath(self._directory)] = self
            self._sign()
        except BaseException:
            self.release()
            raise

    def _wait(self, patience: float) -> None:
        deadline, told = time.monotonic() + patience, False
        while not self._try():
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    "Another run saves into %s: %s." % (self._directory, self._holder()),
                    "Wait for it or end it, or give this run a checkpoint directory of its own.",
                )
            if not told and patience > 0:
                self._tell("%s saves into %s; waiting for it to end" % (self._holder(), self._directory))
                told = True
            time.sleep(0.05)

    def _try(self) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            if not self._unsupported:
                text = "%s is on a file system without locks: see to it that only one run at a time saves there"
                self._tell(text % self._directory)
            self._unsupported = True
        return True

    def confirm(self) -> None:
        """Make sure, before a save, that it is still held; take it again if the directory was replaced.

        Raises CheckpointError if another run has taken it meanwhile, OSError.
        """
        if not self.held:
            return
        try:
            there, ours = os.stat(self._path), os.fstat(self._fd)
            replaced = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            replaced = True
        if replaced:
            self.release()
            self.take(patience=0.0)
        else:
            self._wait(0.0)

    def release(self) -> None:
        """Let go of it. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        if _held.get(os.path.realpath(self._directory)) is self:
            del _held[os.path.realpath(self._directory)]

    def _sign(self) -> None:
        """Write down who we are, for whoever finds the lock taken."""
        who = {"pid": os.getpid(), "host": os.uname()[1], "since": time.time()}
        for key, name in (("job", rundir.ENV_JOB_ID), ("attempt", rundir.ENV_ATTEMPT)):
            if os.environ.get(name):
                who[key] = os.environ[name]
        with contextlib.suppress(OSError):  # a full disk is no reason not to start
            data = json.dumps(who).encode()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)

    def _holder(self) -> str:
        try:
            who: Optional[Dict[str, Any]] = json.loads(os.pread(self._fd, 4096, 0))
        except (OSError, ValueError):
            who = None
        if not isinstance(who, dict) or "pid" not in who:
            return "another process"
        text = "process %s on %s" % (who["pid"], who.get("host", "?"))
        if "job" in who:
            text += " (job %s, attempt %s)" % (who["job"], who.get("attempt", "?"))
        if isinstance(who.get("since"), (int, float)):
            text += " since " + time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        return text
