"""Writing behind the training: one thread, one write at a time, and nothing that it does can end the training.

    1. the training thread takes a snapshot and starts a write; a second one waits until the first is done
    2. the thread writes, flushes and publishes; whatever happens to it becomes an Outcome
    3. the training thread collects the outcome at a later safe point

At the interpreter's end a write is waited for. A forked child (a data-loader worker) has no thread and knows of none:
it publishes nothing, and reports nothing. A process that is killed leaves a hidden directory that the next one clears.
Must not know what is written.
"""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, List, Optional

from gpusched.checkpoint.disk.files import Checkpoint


@dataclass(frozen=True)
class Outcome:
    """How a write behind the training ended: a checkpoint, which is durable then, or an error."""

    checkpoint: Optional[Checkpoint]
    error: Optional[BaseException]
    seconds: float  # from the snapshot to the end
    stall: float = 0.0  # seconds that the training thread stood still for it
    notes: "tuple[str, ...]" = ()  # sentences for the person who trains


Work = Callable[[List[str]], Checkpoint]  # gets a list to add sentences to


class Writer:
    """Runs one write at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._outcomes: Deque[Outcome] = deque()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, work: Work, stall: float) -> None:
        """Run `work` in a thread, or at once where no thread can be had. Waits for the one before.

        stall: seconds that the snapshot has taken, for the outcome.
        """
        self.wait()
        _register(self)
        self._thread = threading.Thread(target=self._run, args=(work, stall), name="gpusched-save", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # a limit on threads, or the interpreter is ending
            self._thread = None
            self._run(work, stall)

    def _run(self, work: Work, stall: float) -> None:
        began = time.monotonic()
        notes: List[str] = []
        checkpoint, failed = None, None
        try:
            checkpoint = work(notes)
        except BaseException as error:
            failed = error
        took = time.monotonic() - began
        self._outcomes.append(Outcome(checkpoint, failed, took, stall, tuple(notes)))

    def wait(self) -> None:
        """Until nothing is being written. Its outcome is still to be collected."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            self._thread = None

    def finished(self) -> Optional[Outcome]:
        """The outcome of a write that is done, once. Does not wait. Safe in any thread."""
        try:
            return self._outcomes.popleft()
        except IndexError:
            return None

    def forget(self) -> None:
        """In a forked child: the write and its outcome are its parent's."""
        self._thread = None
        self._outcomes.clear()


_writers: "weakref.WeakSet[Writer]" = weakref.WeakSet()
_registered = False


def _register(writer: Writer) -> None:
    """Hooks run in the reverse order of their registration. This one is registered at the first write, so it runs
    before those that end the process (leave.py) or close what the write may need (the ranks' connections).
    """
    global _registered
    _writers.add(writer)
    if not _registered:
        _registered = True
        atexit.register(_wait_for_all)
        os.register_at_fork(after_in_child=_forget_all)


def _wait_for_all() -> None:
    for writer in list(_writers):
        writer.wait()


def _forget_all() -> None:
    for writer in list(_writers):
        writer.forget()
