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
    2. `run.batches()` of that epoch puts back what those lines may have touched (metrics, counters, learning rates)
       and, last, the generators' state at the stop; then it hands out the batches that are left

A stop may also come as SIGTERM sent by hand: it sets a flag, and the next safe point saves and leaves with code 85; a
second SIGTERM ends the process at once. Nothing is ever saved inside a signal handler.

`run.values` is a dictionary of plain values that belongs to the checkpoint: keep running sums and best-so-far there.
"""

import os
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from gpusched import rundir
from gpusched.checkpoint import leave
from gpusched.checkpoint.batches import Batches
from gpusched.checkpoint.data.sources import source_for
from gpusched.checkpoint.disk.files import Checkpoint
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.keeper import Keeper
from gpusched.checkpoint.mailbox import Mailbox, Request
from gpusched.checkpoint.position import Call
from gpusched.checkpoint.progress import Progress
from gpusched.checkpoint.state.randomness import mix
from gpusched.checkpoint.state.registry import Registry


class Run:
    """One training run. Register everything with state once, before `epochs()`.

    model, optimizer, scheduler, scaler, ema, metrics, generators: one object, or a list or dictionary of them; extra: a
    dictionary of objects with state_dict/load_state_dict, generators, or lists and dictionaries of plain values.
    seed: of the order of samples and their random transforms (default: torch's initial seed, so it follows
    torch.manual_seed). directory: for checkpoints (default: GPUSCHED_CHECKPOINT_DIR; none: nothing is saved).
    keep: good checkpoints to keep. every_seconds, every_steps: saves that nobody asked for (None: never).
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
        every_seconds: Optional[float] = 600.0,
        every_steps: Optional[int] = None,
    ) -> None:
        self.report: List[str] = []  # everything that was told on stderr
        given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema}
        registry = Registry(dict(given, metrics=metrics, extra=extra, generators=generators))
        place = os.fspath(directory) if directory else os.environ.get(rundir.ENV_CHECKPOINT_DIR)
        vault = Vault(place, keep, self._tell) if place else None
        self._keeper = Keeper(registry, vault, self._tell, _first_seed(seed))
        self._seed_given = seed
        self._mail = Mailbox.from_environment()
        self._progress = Progress(os.environ.get(rundir.ENV_JOB_DIR))
        self._termination = leave.Termination()
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._phase, self._count, self._running = -1, 0, False
        self._calls_made = 0
        self._total: Optional[int] = None
        self._lengths: Dict[int, Optional[int]] = {}
        self._sources: Dict[int, Any] = {}
        self._next_save = float("inf")
        self._told: "set[str]" = set()
        self._loaded: Optional[Tuple[Checkpoint, Dict[str, Any]]] = None

    # what a script may look at

    @property
    def values(self) -> Dict[str, Any]:
        """Plain values of the script (running sums, the best score so far…), saved and restored with the rest."""
        return self._keeper.values

    @property
    def epoch(self) -> int:
        """The present epoch, counted from 0."""
        return self._keeper.position.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps taken in the whole run, those before a resume included."""
        return self._keeper.position.steps

    @property
    def batch(self) -> int:
        """The present batch within the epoch, counted from 0 over stops (unlike enumerate)."""
        return max(0, self._keeper.position.batch - 1)

    @property
    def seed(self) -> int:
        """What the order of samples and their random transforms depend on; after a resume, the checkpoint's."""
        return self._keeper.seed

    @property
    def directory(self) -> Optional[str]:
        """Where checkpoints are written; None if nothing is saved."""
        return self._keeper.vault.directory if self._keeper.vault else None

    @property
    def total(self) -> Optional[int]:
        """Steps at the end of run.epochs(), as far as the loader's length tells; else None."""
        position = self._keeper.position
        call = position.training_call()
        index = position.calls.index(call) if call is not None else -1
        self._total = position.total(self._count, self._lengths.get(index)) or self._total
        return self._total

    def state(self) -> Dict[str, Any]:
        """The state of everything registered, by name, as a checkpoint would hold it (references, not copies)."""
        return self._keeper.registry.capture()

    # the loops

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left of `count`, counted from 0. Restores the newest good checkpoint first.

        A second call, after the first has ended, is another phase of the run with epochs of its own.
        Raises CheckpointError if a checkpoint exists and does not fit, or none of those that exist can be read.
        """
        if self._running:
            raise CheckpointError("run.epochs() was called inside run.epochs().", "Use one loop over epochs at a time.")
        keeper, position = self._keeper, self._keeper.position
        self._begin(count)
        try:
            while position.phase == self._phase and position.epoch < count:
                if not keeper.resuming:
                    keeper.begin_epoch()
                self._calls_made, self._lengths = 0, {}
                yield position.epoch
                keeper.end_epoch()
                self._attend()
            if position.phase == self._phase:
                self._finish()
        finally:
            self._running = False
            self._termination.remove()
            if leave.leaving() is None:
                self._mail.withdraw()

    def batches(self, loader: Any) -> Batches:
        """The batches of this epoch that are left.

        A DataLoader over a dataset with __getitem__ is visited in an order, and with random transforms, that depend
        only on (seed, epoch, place): a resume costs nothing and is exact for any number of workers. A range or list
        goes by index. Anything else is replayed, with a sentence on what that costs.
        """
        self._require_epoch("batches")
        position, index = self._keeper.position, self._calls_made
        self._calls_made += 1
        if index == len(position.calls):
            position.calls.append(Call())
        source = self._source(loader)
        self._lengths[index] = source.length()
        seed = mix(self.seed, position.phase, position.epoch, index)
        return Batches(self, source, position.calls[index], seed)

    def _source(self, loader: Any) -> Any:
        """One source per loader, so that persistent workers persist; the pair keeps the loader's id its own."""
        if id(loader) not in self._sources:
            source = source_for(loader, self._tell_once)
            if isinstance(loader, (range, list, tuple)):
                return source
            self._sources[id(loader)] = (loader, source)
        return self._sources[id(loader)][1]

    def loop_begins(self, call: Call) -> None:
        """For Batches: the script's loop starts. Here a resume ends, with the generators' state last."""
        call.entered = True
        self._keeper.finish_restore(self._keeper.position.calls.index(call))

    def loop_ends(self) -> None:
        """For Batches: the loop is over; from here on an interrupted evaluation starts again."""
        if leave.leaving() is None:
            self._keeper.mark_boundary()

    # safe points

    def step(self, **metrics: Any) -> None:
        """An optimizer step is complete: count it, report metrics, and save or leave if asked to.

        Call it as the last line of the loop's body: what follows it is not run again after a stop.
        """
        self._require_epoch("step")
        position = self._keeper.position
        position.steps += 1
        call = position.active()
        if call is None:
            self._tell_once("run.step() outside run.batches(): after a stop this epoch starts again from its beginning")
        else:
            call.steps += 1
            call.open_batch = False
        self.log(**metrics)
        self._attend()

    def log(self, **metrics: Any) -> None:
        """Add metrics to the progress that `gpusched queue` and `show` display."""
        self._progress.note(metrics)
        if self._progress.due(time.monotonic()):
            self._write_progress()

    def check(self) -> None:
        """A safe point without a step, for evaluation and warm-up loops: save or leave here if asked to.

        After a stop in an evaluation that follows an epoch's batches, that evaluation starts again from its beginning.
        One between two batches is not repeated. Inside a batch whose run.step() is still to come nothing can be saved;
        then the stop happens at that step.
        """
        request = self._asked()
        if request is None or self._phase < 0:
            return
        call = self._keeper.position.active() if self._running else None
        if call is not None and call.open_batch:
            if call.steps or self._keeper.registry.training():
                self._tell_once("asked to save inside an unfinished step: it happens at the next run.step()")
                return
            call.open_batch = False  # a validation loop over run.batches(): as good as a step
        self._serve(request, self._keeper.boundary if call is None else None)

    def save(self) -> bool:
        """Save now, at this step boundary. False, with a sentence on stderr, if it cannot be written."""
        self._require_epoch("save")
        saved = self._keeper.vault is not None and self._keeper.save() is not None
        if saved and self._keeper.vault is not None:
            self._keeper.vault.tidy()
        return saved

    def _asked(self) -> Optional[Request]:
        if leave.leaving() is not None:  # the script has caught our SystemExit and gone on
            leave.leave(leave.leaving() or 0)
        if self._keeper.vault is None:
            return None
        return Request(True, "SIGTERM") if self._termination.asked else self._mail.poll()

    def _attend(self) -> None:
        request = self._asked()
        if request is not None:
            self._serve(request, None)
        elif self._keeper.vault is not None:
            by_steps = self._every_steps is not None and self.steps % self._every_steps == 0
            if by_steps or time.monotonic() >= self._next_save:
                self.save()
                self._plan_next_save()

    def _plan_next_save(self) -> None:
        wanted = self._keeper.vault is not None and self._every_seconds is not None
        self._next_save = time.monotonic() + (self._every_seconds or 0.0) if wanted else float("inf")

    def _serve(self, request: Request, boundary: Optional[Dict[str, Any]]) -> None:
        """Save, then acknowledge, then (for a stop) leave: in this order, so that `saved` is never a promise only.

        A stop that cannot be saved (full disk, broken device) leaves with 1 and unacknowledged. Training on would only
        lose more steps when the grace period ends; this way the scheduler requeues from the last good checkpoint now.
        """
        began = time.monotonic()
        saved = self._keeper.save(boundary)
        self._mail.close(request)
        self._write_progress()
        why = " (%s)" % request.cause if request.cause else ""
        if saved is not None:
            self._mail.acknowledge(saved.path, saved.step)
            took = "saved %s in %.2f s" % (saved.name, time.monotonic() - began)
            self._tell(took + ("; stopping as asked%s, run again to resume" % why if request.stop else ""))
        if request.stop:
            if saved is None:
                self._tell("stopping as asked%s WITHOUT a new checkpoint; steps since the last one are lost" % why)
            leave.leave(rundir.EXIT_SAVED if saved is not None else 1)
        if saved is not None and self._keeper.vault is not None:
            self._keeper.vault.tidy()
        self._plan_next_save()

    # beginning and end

    def _begin(self, count: int) -> None:
        self._phase, self._count, self._total = self._phase + 1, count, None
        position, vault = self._keeper.position, self._keeper.vault
        if vault is None:
            if self._mail.inside:
                self._tell_once("no checkpoint directory is set: this job cannot save itself")
        else:
            _require_one_process()
        if position.phase < self._phase:
            position.begin_phase(self._phase)
        if vault is not None and self._phase == 0:
            self._loaded = vault.load()
        if self._loaded is not None and self._loaded[1]["position"]["phase"] >= self._phase:
            self._resume(*self._loaded)
        elif vault is not None:
            self._keeper.refuse_what_cannot_be_stored()
        self._running = True
        self._plan_next_save()
        if vault is not None:
            self._termination.install()
            self._mail.announce()

    def _resume(self, found: Checkpoint, tree: Dict[str, Any]) -> None:
        if tree["position"]["phase"] > self._phase:  # this phase is over: the loop has nothing left
            self._keeper.position.phase = tree["position"]["phase"]
            return
        self._keeper.restore(found, tree)
        where = "epoch %d, batch %d" % (found.epoch, found.batch)
        done = "; training is complete" if found.epoch >= self._count else ""
        self._tell("resumed from %s (%s)%s" % (found.name, where, done))
        if self._seed_given not in (None, self.seed):
            self._tell("seed=%s is not used: the checkpoint goes on with seed %s" % (self._seed_given, self.seed))

    def _finish(self) -> None:
        self._keeper.mark_boundary()
        self._write_progress()
        if self._keeper.vault is not None and self._keeper.changed() and self._keeper.save(self._keeper.boundary):
            self._keeper.vault.tidy()

    def _write_progress(self) -> None:
        self._progress.write(self.epoch, self.steps, self.total)

    def _require_epoch(self, name: str) -> None:
        if not self._running:
            raise CheckpointError(
                "run.%s() was called outside run.epochs()." % name, "Put it inside `for epoch in run.epochs(n):`."
            )

    def _tell(self, sentence: str) -> None:
        self.report.append(sentence)
        say(sentence)

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


def _first_seed(given: Optional[int]) -> int:
    """torch's initial seed follows torch.manual_seed and is random where nothing was seeded, like torch itself."""
    torch = sys.modules.get("torch")
    if given is not None or torch is None:
        return given or 0
    return int(torch.initial_seed())


def _require_one_process() -> None:
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks.isdigit() and int(ranks) > 1:
        raise CheckpointError(
            "This run has %s ranks, and this version of gpusched.checkpoint saves single-process runs only." % ranks,
            "Unset GPUSCHED_CHECKPOINT_DIR and `directory=` to train without checkpoints.",
        )
