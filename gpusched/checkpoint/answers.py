"""What is done at a safe point once it is decided: save, then acknowledge, then (for a stop) leave.

In this order, so that `saved` is never a promise only. A stop is saved before anything else happens; what may go on
training is saved behind it, and acknowledged when it is durable. Must not decide (safepoint.py does).
"""

import threading
import time
from typing import Any, Callable, Dict, Optional

from gpusched import rundir
from gpusched.checkpoint import leave
from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.keeper import Keeper
from gpusched.checkpoint.mailbox import Mailbox, Request
from gpusched.checkpoint.safepoint import Decision


class Answers:
    """Saves for one run, and tells the scheduler and the person who reads the log."""

    def __init__(
        self, keeper: Keeper, mail: Mailbox, interval: Interval, behind: bool, tell: Callable[[str], None]
    ) -> None:
        self._keeper, self._mail, self._interval, self._tell = keeper, mail, interval, tell
        self.behind = behind
        self._unanswered: Optional[Request] = None  # its checkpoint is being written behind the training
        self._lock = threading.Lock()  # the watchdog collects, too
        self._seconds = 0.0  # that the last blocking save took
        self._prepared = False

    def step_done(self) -> None:
        """A step is complete: from the first one on, all the state is there that a save behind will copy."""
        if not self._prepared and self.behind and self._interval.wanted:
            self._keeper.prepare()
        self._prepared = True

    def serve(self, decision: Decision, boundary: Optional[Dict[str, Any]]) -> None:
        if decision.stop and decision.request is not None:
            self._stop(decision.request, boundary)
        elif self.behind and not self._keeper.resuming:
            self._save_behind(decision.request, boundary)
        else:
            self._save_now(decision.request, boundary)

    def _stop(self, request: Request, boundary: Optional[Dict[str, Any]]) -> None:
        """A stop that cannot be saved (full disk, broken device) leaves with 1 and unacknowledged. Training on would
        only lose more steps when the grace period ends; this way the scheduler requeues from the last good one now.
        """
        began = time.monotonic()
        if request.seconds_left() < self._seconds:
            text = "saving took %.1f s the last time, and %.1f s are left: it may be killed before it is done"
            self._tell(text % (self._seconds, max(0.0, request.seconds_left())))
        self.collect(wait=True)
        saved = self._keeper.save(boundary, stop=True)
        self._mail.close(request)
        why = " (%s)" % request.cause if request.cause else ""
        if saved is None:
            self._tell("stopping as asked%s WITHOUT a new checkpoint; steps since the last one are lost" % why)
            leave.leave(1)
        self._mail.acknowledge(saved.path, saved.step)
        self._keeper.ranks.gather(None)  # a launcher ends all ranks when the first has left: not before it is told
        took = time.monotonic() - began
        self._tell("saved %s in %.2f s; stopping as asked%s, run again to resume" % (saved.name, took, why))
        leave.leave(rundir.EXIT_SAVED)

    def _save_now(self, request: Optional[Request], boundary: Optional[Dict[str, Any]]) -> bool:
        self.collect(wait=True)
        began = time.monotonic()
        saved = self._keeper.save(boundary)
        self._seconds = time.monotonic() - began
        self._interval.saved(began, self._seconds)
        if request is not None:
            self._mail.close(request)
        if saved is None:
            return False
        if request is not None:
            self._mail.acknowledge(saved.path, saved.step)
            self._tell("saved %s in %.2f s" % (saved.name, self._seconds))
        assert self._keeper.vault is not None
        self._keeper.vault.tidy()
        return True

    def _save_behind(self, request: Optional[Request], boundary: Optional[Dict[str, Any]]) -> None:
        self.collect(wait=True)  # one write at a time, so that a slow disk cannot pile up copies of the state
        if request is not None:
            self._mail.close(request)
        with self._lock:
            self._unanswered = request  # before the write begins: the watchdog may collect it the moment it is done
        if not self._keeper.save_behind(boundary):
            with self._lock:
                self._unanswered = None

    def save(self, boundary: Optional[Dict[str, Any]]) -> bool:
        """Save now because the script asks for it."""
        return self._save_now(None, boundary)

    def collect(self, wait: bool = False) -> None:
        """Tell about a write behind the training that is done; with `wait`, wait for it. Safe in any thread."""
        vault = self._keeper.vault
        if vault is None:
            return
        with self._lock:
            outcome = vault.settle() if wait else vault.finished()
            if outcome is None:
                return
            request, self._unanswered = self._unanswered, None
            if outcome.checkpoint is None:
                self._keeper.cannot_save(outcome.error)
                self._keeper.forget_save()
                return
            self._keeper.saved_behind()
            self._seconds = outcome.seconds
            if request is not None:
                self._mail.acknowledge(outcome.checkpoint.path, outcome.checkpoint.step)
                text = "saved %s in %.2f s behind the training, which stood still for %.3f s"
                self._tell(text % (outcome.checkpoint.name, outcome.seconds, outcome.stall))
            vault.tidy()
