"""What every adapter needs of gpusched: is something asked, how far is the run, save, acknowledge, leave.

The framework owns the loop and writes its own file; this writes nothing but what lies around it. In this order, as in
run.py: publish, acknowledge, leave, so that `saved` is never a promise only.
Must not import any framework, nor torch.
"""

import os
import time
from typing import Any, Callable, Dict, List, Optional

from gpusched import rundir
from gpusched.checkpoint import leave
from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.interval import Every, Interval
from gpusched.checkpoint.mailbox import Mailbox, Request
from gpusched.checkpoint.progress import Progress
from gpusched.checkpoint.timelimit import TimeLimit
from gpusched.checkpoint.watchdog import Watchdog

Save = Callable[[], Optional[files.Checkpoint]]


class Attempt:
    """One framework's run as gpusched sees it. Without a directory nothing is asked and nothing is saved.

    keep: good checkpoints to keep. every_seconds, every_steps: saves that nobody asked for (None: never).
    """

    def __init__(self, directory: Optional[str], keep: int, every_seconds: Every, every_steps: Optional[int]) -> None:
        self.report: List[str] = []  # everything that was told on stderr
        self._vault = Vault(directory, keep, self.tell) if directory else None
        self._mail = Mailbox.from_environment()
        self._progress = Progress(os.environ.get(rundir.ENV_JOB_DIR))
        self._termination = leave.Termination()
        self._interval = Interval(every_seconds, every_steps)
        self._near: Optional[Request] = None  # kept until a safe point at which it can be saved
        self._limit = TimeLimit.from_environment(self.tell)
        self._watchdog = Watchdog(self._waiting, self.tell, lambda: self._where, lambda: None)
        self._where, self._points, self._watching = "at the start", 0, False
        self._saved_at = 0.0  # time.monotonic() of the last save
        self._told: "set[str]" = set()

    @property
    def directory(self) -> Optional[str]:
        """Where checkpoints are; None if nothing is saved."""
        return self._vault.directory if self._vault is not None else None

    # beginning and end

    def claim(self) -> None:
        """Before anything is loaded: make sure that no other run saves here. Raises CheckpointError if one does."""
        if self._vault is not None:
            self._vault.claim()

    def continued(self, found: files.Checkpoint) -> None:
        """This run goes on from that checkpoint."""
        if self._vault is not None:
            self._vault.latest = found

    def begin(self) -> None:
        """The loop starts: from here on safe points follow."""
        if self.directory is None:
            if self._mail.inside:
                self.tell_once("no checkpoint directory is set: this job cannot save itself")
            return
        self.claim()
        self._saved_at = time.monotonic()
        self._interval.begin(self._saved_at)
        self._termination.install()
        self._mail.announce()
        self._watchdog.start()
        self._watching = True

    def end(self) -> None:
        """The loop is over; a signal may end the process again. Safe to call twice."""
        self._watchdog.stop()
        self._termination.remove()
        if self._watching and leave.leaving() is None:
            self._mail.withdraw()
        self._watching = False
        if self._vault is not None:
            self._vault.release()

    # safe points

    def asked(self) -> Optional[Request]:
        """At a safe point: what is to be served now, if anything. Counts the safe points of this process from 1."""
        if leave.leaving() is not None:  # the script has caught our SystemExit and gone on
            leave.leave(leave.leaving() or 0)
        if self.directory is None:
            return None
        self._points += 1
        now = time.monotonic()
        self._watchdog.seen(now)
        request = self._waiting()
        if self._near is None and request is None and self._limit.near(now):
            self._near = Request(False, "the time limit is near")
        request = request or self._near
        return request if request is not None and request.safe_point <= self._points else None

    def _waiting(self) -> Optional[Request]:
        return Request(True, "SIGTERM") if self._termination.asked else self._mail.poll()

    def due(self, steps: int) -> bool:
        """Whether a save that nobody asked for is due at this step."""
        if self.directory is None:
            return False
        now = time.monotonic()
        return self._interval.due_by_steps(steps) or now - self._saved_at >= self._interval.seconds(now)

    def serve(self, request: Request, save: Save) -> None:
        """Save, acknowledge and, for a stop, leave. A stop that cannot be saved leaves with 1, unacknowledged."""
        began = time.monotonic()
        saved = self.save(save)
        self._near = None
        self._mail.close(request)
        why = " (%s)" % request.cause if request.cause else ""
        if saved is not None:
            self._mail.acknowledge(saved.path, saved.step)
            took = "saved %s in %.2f s" % (saved.name, time.monotonic() - began)
            self.tell(took + ("; stopping as asked%s, run again to resume" % why if request.stop else ""))
        if request.stop:
            if saved is None:
                self.tell("stopping as asked%s WITHOUT a new checkpoint; steps since the last one are lost" % why)
            self._watchdog.stop()
            leave.leave(rundir.EXIT_SAVED if saved is not None else 1)

    def save(self, save: Save) -> Optional[files.Checkpoint]:
        """Save by calling `save`; None, with a sentence on why, if it cannot be: training can go on."""
        began = time.monotonic()
        try:
            saved = save()
        except Exception as error:  # whatever it is, it must not end the training
            self.tell("CANNOT SAVE a checkpoint: %s" % (self._vault.why_not(error) if self._vault else error))
            saved = None
        self._interval.saved(began, time.monotonic() - began)
        self._saved_at = began
        if saved is not None and self._vault is not None:
            self._vault.latest = saved
        return saved

    def tidy(self) -> None:
        """Delete what is older than the newest ones to keep."""
        if self._vault is not None:
            self._vault.tidy()

    # words

    def at(self, epoch: int, step: int, total: Optional[int], metrics: Dict[str, Any], now: bool = False) -> None:
        """Where the run is: a line of progress if one is due, or `now`."""
        self._where = "epoch %d, step %d" % (epoch, step)
        if self._progress.due(time.monotonic()) or now:
            self._progress.note(metrics)
            self._progress.write(epoch, step, total)

    def tell(self, sentence: str) -> None:
        self.report.append(sentence)
        say(sentence)

    def tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self.tell(sentence)

    def refuse_several_processes(self, count: int, instead: str) -> None:
        """Raises CheckpointError if this run has several processes and is to be saved."""
        if count > 1 and self.directory is not None:
            raise CheckpointError(
                "This run has %d processes, and this adapter saves runs of one process only." % count,
                "%s Or unset GPUSCHED_CHECKPOINT_DIR to train without checkpoints." % instead,
            )
