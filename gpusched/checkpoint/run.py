"""Run: what a training script holds to become stoppable and resumable at any step.

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(3):
        for batch in run.batches(loader):
            ...
            run.step(loss=float(loss))      # the last line of the loop's body

Under gpusched, `run.step()` asks whether to save or to stop. By hand the same script just runs; with a directory
(`directory=` or GPUSCHED_CHECKPOINT_DIR) it saves and resumes there too. What is restored, and when:

    1. `run.epochs()` loads the newest good checkpoint into everything registered; the generators get the state that
       they had when that epoch began, so that the first lines of the epoch run again as they did
    2. `run.batches()` of that epoch puts back what those lines may have touched (metrics, counters, learning rates,
       gradients) and, last, the generators' state at the stop; then it hands out the batches that are left

A stop may also come as SIGTERM sent by hand: it sets a flag, and the next safe point saves and leaves with code 85; a
second SIGTERM ends the process at once. Nothing is ever saved inside a signal handler. Periodic saves are written
behind the training: it stands still only while its state is copied.

`run.values` is a dictionary of plain values that belongs to the checkpoint: keep running sums and best-so-far there.
"""


import os
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from gpusched import rundir
from gpusched.checkpoint import leave
from gpusched.checkpoint.answers import Answers
from gpusched.checkpoint.batches import Batches
from gpusched.checkpoint.data.known import KnownLoaders
from gpusched.checkpoint.data.shape import Shape
from gpusched.checkpoint.data.sources import source_for
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.facts import Facts, trace_of_rehearsal
from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.keeper import Keeper
from gpusched.checkpoint.mailbox import Mailbox
from gpusched.checkpoint.position import NESTED, Call
from gpusched.checkpoint.progress import Progress
from gpusched.checkpoint.ranks import group
from gpusched.checkpoint.safepoint import SafePoints
from gpusched.checkpoint.state.randomness import first_seed, mix
from gpusched.checkpoint.state.registry import Registry
from gpusched.checkpoint.state.unregistered import Unregistered
from gpusched.checkpoint.timelimit import TimeLimit
from gpusched.checkpoint.watchdog import Watchdog


class Run(Facts):
    """One training run. Register everything with state once, before `epochs()`.

    model, optimizer, scheduler, scaler, ema, metrics, generators: one object, or a list or dictionary of them; extra: a
    dictionary of objects with state_dict/load_state_dict, generators, or lists and dictionaries of plain values.
    seed: of the order of samples and their random transforms (default: torch's initial seed, so it follows
    torch.manual_seed). directory: for checkpoints (default: GPUSCHED_CHECKPOINT_DIR; none: nothing is saved).
    keep, keep_every_steps: good checkpoints to keep: the newest so many, and one for every so many steps for good.
    every_seconds, every_steps: saves that nobody asked for; "auto": as often as pays, from the measured cost and the
    ends that came unprepared (interval.py); None: never. behind: write them behind the training (needs host memory of
    the state's size). logical: number of logical ranks, the same bits on any number of processes (ranks/logical.py).
    environment: what a resume does when threads, torch, device, ranks… are others than when it was saved: "exact"
    refuses, "warn" says what may round differently, "any" is silent. ignore: objects that need not be registered.
    Raises CheckpointError for an object without a state to save.
    """

    def __init__(
        self,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        metrics: Any = None,
        extra: Optional[Dict[str, Any]] = None,
        generators: Any = None,
        seed: Optional[int] = None,
        directory: "Optional[str | os.PathLike[str]]" = None,
        keep: int = 3,
        every_seconds: "float | str | None" = 600.0,
        every_steps: Optional[int] = None,
        keep_every_steps: Optional[int] = None,
        behind: bool = True,
        logical: Optional[int] = None,
        environment: str = "warn",
        ignore: Sequence[Any] = (),
    ) -> None:
        if environment not in ("exact", "warn", "any"):
            raise CheckpointError("environment=%r is not known." % environment, "Choose from exact, warn and any.")
        self.report: List[str] = []  # everything that was told on stderr
        self._told: "set[str]" = set()
        self._environment, self._ignore, self._logical = environment, list(ignore), logical
        given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema}
        registry = Registry(dict(given, metrics=metrics, extra=extra, generators=generators))
        place = os.fspath(directory) if directory else os.environ.get(rundir.ENV_CHECKPOINT_DIR)
        self.ranks = group.find(needed=bool(place))
        vault = self._open(place, keep, keep_every_steps) if place else None
        interval = Interval(every_seconds, every_steps)
        first = self.ranks.broadcast(first_seed(seed))
        self._keeper = Keeper(registry, vault, self.ranks, interval, self._tell, first)
        self._seed_given, self._interval = seed, interval
        self._mail = Mailbox.from_environment() if self.ranks.rank == 0 else Mailbox(None, 0)
        self._progress = Progress(os.environ.get(rundir.ENV_JOB_DIR) if self.ranks.rank == 0 else None)
        self._termination = leave.Termination()
        limit = TimeLimit.from_environment(self._tell)
        self._points = SafePoints(self._mail, self._termination, interval, self.ranks, limit=limit)
        self._answers = Answers(self._keeper, self._mail, interval, behind, self._tell)
        self._watchdog = Watchdog(self._points.expected, self._tell_once, self._where, self._answers.collect)
        self._trace = trace_of_rehearsal()
        self._phase, self._count, self._running = -1, 0, False
        self._calls_made = 0
        self._loaders = KnownLoaders()
        self._shared_out: Any = None  # the logical ranks of this process
        self._unregistered: Any = None
        self._loaded: Any = None

    def _open(self, directory: str, keep: int, keep_every_steps: Optional[int]) -> Any:
        from gpusched.checkpoint.disk.vault import Vault  # a run that saves nothing need not load it

        return Vault(directory, keep, self._tell, keep_every_steps, self.ranks)

    # the loops

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left of `count`, counted from 0. Restores the newest good checkpoint first.

        A second call, after the first has ended, is another phase of the run with epochs of its own.
        Raises CheckpointError if a checkpoint exists and does not fit, or none of those that exist can be read.
        """
        if self._running:
            raise CheckpointError("run.epochs() was called inside run.epochs().", "Use one loop over epochs at a time.")
        keeper, position = self._keeper, self._keeper.position
        try:
            self._begin(count, sys._getframe(1))
            while position.phase == self._phase and position.epoch < count:
                if not keeper.resuming:
                    keeper.begin_epoch()
                self._calls_made, self._lengths = 0, {}
                yield position.epoch
                self._loaders.forget_unused()
                keeper.end_epoch()
                self._safe_point("epoch")
                self._tell_unregistered()
            if position.phase == self._phase:
                self._finish()
        finally:
            self._end()

    def batches(self, loader: Any) -> Batches:
        """The batches of this epoch that are left.

        A DataLoader over a dataset with __getitem__ is visited in an order, and with random transforms, that depend
        only on (seed, epoch, place): a resume costs nothing and is exact for any number of workers. A range or list
        goes by index. What has state_dict() and load_state_dict() continues from its state. Anything else is replayed,
        with a sentence on what that costs.
        """
        self._require_epoch("batches")
        position, index = self._keeper.position, self._calls_made
        self._calls_made += 1
        if index == len(position.calls):
            position.calls.append(Call(turn=position.turns))
        source = self._loaders.source(loader, self._make_source)
        self._lengths[index] = source.length()
        call = position.calls[index]
        seed = mix(self.seed, position.phase, position.epoch, index, *([call.turn] if call.turn else []))
        state = self._keeper.source_state(index, source, self._environment)
        return Batches(self, source, call, seed, state)

    def _make_source(self, loader: Any) -> Any:
        source = source_for(loader, self._tell_once, Shape(self.ranks.rank, self.ranks.size, self._logical))
        return source if self._logical is None else self._logical_ranks(self._logical).over(source)

    def _logical_ranks(self, count: int) -> Any:
        """Made when the first loader comes: by then the models are what and where they are trained."""
        if self._shared_out is None:
            from gpusched.checkpoint.ranks.logical import LogicalRanks

            registry = self._keeper.registry
            self._shared_out = LogicalRanks(count, registry.modules, registry.targets)
        return self._shared_out

    def loop_begins(self, call: Call) -> None:
        """For Batches: the script's loop starts. Here a resume ends, with the generators' state last."""
        position = self._keeper.position
        call.outer = position.active()
        call.outer_count = call.outer.count if call.outer is not None else 0
        call.entered = True
        self._keeper.finish_restore(position.calls.index(call))

    def batch_begins(self, call: Call, item: Any) -> None:
        """For Batches: this is handed to the script next."""
        if not call.worked:
            call.evaluating = not self._keeper.registry.training() and (call.count > 1 or _no_gradients())
        if self._trace is not None:
            self._trace.batch(item)

    def loop_ends(self, call: Call) -> None:
        """For Batches: the loop is over; from here on an interrupted evaluation starts again."""
        calls = self._keeper.position.calls
        if call.inside and calls[-1] is call and self._calls_made == len(calls):
            calls.pop()  # an evaluation between two batches: a resume does not come by it again
            self._keeper.position.turns += 1
            self._calls_made -= 1
            self._keeper.sources.pop(len(calls), None)
        elif leave.leaving() is None:
            self._keeper.mark_boundary()

    # safe points

    def step(self, **metrics: Any) -> None:
        """An optimizer step is complete: count it, report metrics, and save or leave if asked to.

        Call it as the last line of the loop's body: what follows it is not run again after a stop.
        """
        self._require_epoch("step")
        position = self._keeper.position
        position.steps += 1
        position.accumulating = False
        call = position.active()
        if call is None:
            self._tell_once("run.step() outside run.batches(): after a stop this epoch starts again from its beginning")
        else:
            call.steps += 1
            if call.nested:
                self._tell_once(NESTED)
            self._batch_is_done()
        self.log(**metrics)
        self._safe_point("step")

    def micro_step(self, **metrics: Any) -> None:
        """A micro batch of an accumulation window is complete: a safe point that saves the gradients with the rest.

        Call it as the last line of a body that did backward() but no optimizer step.
        """
        self._require_epoch("micro_step")
        position = self._keeper.position
        position.accumulating = True
        self._batch_is_done()
        self.log(**metrics)
        self._safe_point("micro_step")

    def _batch_is_done(self) -> None:
        """Of all loops that are running: in a zip() of two, a step takes a batch of each."""
        for one in self._keeper.position.running():
            one.worked, one.open_batch = True, False

    def log(self, **metrics: Any) -> None:
        """Add metrics to the progress that `gpusched queue` and `show` display."""
        self._progress.note(metrics)
        if self._progress.due(time.monotonic()):
            self._write_progress()

    def check(self) -> None:
        """A safe point without a step, for evaluation and warm-up loops: save or leave here if asked to.

        After a stop in an evaluation that follows an epoch's batches, that evaluation starts again from its beginning.
        One between two batches is not repeated. Inside a batch whose run.step() is still to come nothing can be saved;
        then the stop happens at that step. With several ranks, call it equally often on all of them.
        """
        if self._phase < 0:
            return
        can_save, boundary = self._place()
        self._safe_point("check", can_save, boundary)

    def _place(self) -> "Tuple[bool, Any]":
        """(whether it can be saved here, the boundary that an evaluation outside of all loops goes back to)."""
        position = self._keeper.position
        if not self._running or position.active() is None:
            return True, self._keeper.boundary
        return position.close_batches(self._keeper.registry.training()), None

    def save(self) -> bool:
        """Save now, durable on return; after the epoch's batches, what was there when they ended.

        False, with a sentence, if it cannot be written, or inside a batch whose run.step() is still to come.
        """
        self._require_epoch("save")
        if self._keeper.vault is None:
            return False
        can_save, boundary = self._place()
        if not can_save:
            self._points.postpone()
            self._tell_once("run.save() inside an unfinished step: it is saved at the next run.step()")
        return can_save and self._answers.save(boundary)

    def _safe_point(self, kind: str, can_save: bool = True, boundary: Any = None) -> None:
        if leave.leaving() is not None:  # the script has caught our SystemExit and gone on
            leave.leave(leave.leaving() or 0)
        if self._trace is not None:
            self._trace.point(kind, self)
        if self._keeper.vault is None:
            return
        now = time.monotonic()
        self._watchdog.seen(now)
        decision = self._points.arrive(now, self.steps, kind, can_save)
        if decision is not None:
            self._write_progress()
            self._tell_unregistered()
            self._answers.serve(decision, boundary)
        elif kind == "step":
            self._answers.step_done()
        elif self._points.waiting:
            self._tell_once("asked to save inside an unfinished step: it happens at the next run.step()")
        self._answers.collect()

    # beginning and end

    def _begin(self, count: int, frame: Any) -> None:
        self._phase, self._count, self._total = self._phase + 1, count, None
        position, vault = self._keeper.position, self._keeper.vault
        if vault is None and self._mail.inside:
            self._tell_once("no checkpoint directory is set: this job cannot save itself")
        if position.phase < self._phase:
            position.begin_phase(self._phase)
        if vault is not None:
            vault.claim()
        if vault is not None and self._phase == 0:
            self._loaded = vault.load()
            self._interval.begin(time.monotonic())
        if vault is not None:
            self._unregistered = Unregistered(frame, [*self._keeper.registry.targets, self], self._ignore)
        if self._loaded is not None and self._loaded[1]["shared"]["position"]["phase"] >= self._phase:
            self._resume()
        elif vault is not None:
            self._keeper.refuse_what_cannot_be_stored()
        self._tell_unregistered()
        self._running = True
        if vault is not None:
            self._termination.install()
            self._watchdog.start()
            self._mail.announce()

    def _resume(self) -> None:
        found, tree, _ = self._loaded
        if tree["shared"]["position"]["phase"] > self._phase:  # this phase is over: the loop has nothing left
            self._keeper.position.phase = tree["shared"]["position"]["phase"]
            return
        try:
            self._keeper.restore(self._loaded, self._environment, self._logical is not None)
        except CheckpointError as error:
            raise CheckpointError("Cannot resume from %s: %s" % (found.path, error.message), error.hint) from None
        self._loaded = None  # as large as the state: no later phase needs it
        where = "epoch %d, batch %d" % (found.epoch, found.batch)
        done = "; training is complete" if found.epoch >= self._count else ""
        self._tell("resumed from %s (%s)%s" % (found.name, where, done))
        if self._seed_given not in (None, self.seed):
            self._tell("seed=%s is not used: the checkpoint goes on with seed %s" % (self._seed_given, self.seed))

    def _finish(self) -> None:
        self._keeper.mark_boundary()
        self._write_progress()
        if self._keeper.vault is not None:
            self._answers.collect(wait=True)
            if self._keeper.changed() and self._keeper.save(self._keeper.boundary, stop=True):
                self._keeper.vault.tidy()

    def _end(self) -> None:
        self._running = False
        self._termination.remove()
        self._watchdog.stop()
        if leave.leaving() is None:
            self._answers.collect(wait=True)
            self._mail.withdraw()
        self.ranks.close()
        if self._keeper.vault is not None:
            self._keeper.vault.release()

    # telling

    def _write_progress(self) -> None:
        self._progress.write(self.epoch, self.steps, self.total)

    def _tell_unregistered(self) -> None:
        if self._unregistered is not None:
            for sentence in self._unregistered.sentences():
                self._tell_once(sentence)

    def _require_epoch(self, name: str) -> None:
        if not self._running:
            raise CheckpointError(
                "run.%s() was called outside run.epochs()." % name, "Put it inside `for epoch in run.epochs(n):`."
            )

    def _tell(self, sentence: str) -> None:
        self.report.append(sentence)
        if self.ranks.rank == 0:
            say(sentence)

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


def _no_gradients() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and not torch.is_grad_enabled()
