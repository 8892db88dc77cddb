"""Lightning: a run that is preempted in the middle of an epoch ends like one that was not.

    from gpusched.checkpoint.frameworks.lightning import GpuschedCallback

    callback = GpuschedCallback()
    trainer = Trainer(..., callbacks=[callback])
    trainer.fit(model, loader, ckpt_path=callback.resume_path())

Lightning saves weights, optimizers, schedulers, counters and callbacks; it restores no random numbers, no order of a
plain loader, no averages of self.log() in mid-epoch. The callback adds these. It asks for requests before each batch
and after each batch of a validation; a validation that was interrupted starts again. With a fixed batch order and
random transforms that depend on (seed, epoch, place) only, the loaders' workers may be of any number.

A checkpoint is a directory `step-N` with `lightning.ckpt` (Lightning's own file, written by trainer.save_checkpoint),
our state as JSON and tensors, and a manifest with checksums that counts as the commit. lightning.ckpt is a pickle of
what Lightning and your callbacks put there; torch reads it with weights_only=True unless you pass weights_only=False to
fit(), and only a file whose checksum fits its manifest is ever handed to Lightning.
Must not touch the weights; works with `lightning.pytorch` and `pytorch_lightning`.
"""

import importlib
import os
import signal
import sys
from typing import Any, Dict, List, Optional

from gpusched import rundir
from gpusched.checkpoint.disk import files
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.frameworks import folder, lightning_state
from gpusched.checkpoint.frameworks.attempt import Attempt
from gpusched.checkpoint.frameworks.extras import Extras
from gpusched.checkpoint.frameworks.loaders import FollowingLoader, Place, Walk, source_of
from gpusched.checkpoint.interval import Every
from gpusched.checkpoint.state import environment, randomness
from gpusched.checkpoint.state.randomness import mix

_older = "lightning.pytorch" not in sys.modules and "pytorch_lightning" in sys.modules
Callback: Any = importlib.import_module("pytorch_lightning" if _older else "lightning.pytorch").Callback
FILE = "lightning.ckpt"
BATCH, VALIDATION, END = "batch", "validation", "end"


class GpuschedCallback(Callback):  # type: ignore[misc]
    """Saves and leaves when gpusched asks, and makes the resumed run exact. See the module for the three lines.

    directory: for checkpoints (default: GPUSCHED_CHECKPOINT_DIR; none: nothing is saved). keep: good checkpoints to
    keep. every_seconds ("auto": as often as pays), every_steps: saves that nobody asked for (None: never). seed: of the
    order of samples and their random transforms (default: torch's initial seed, which follows seed_everything).
    """

    def __init__(
        self,
        directory: "Optional[str | os.PathLike[str]]" = None,
        keep: int = 3,
        every_seconds: Every = 600.0,
        every_steps: Optional[int] = None,
        seed: Optional[int] = None,
    ) -> None:
        super().__init__()
        place = os.fspath(directory) if directory else os.environ.get(rundir.ENV_CHECKPOINT_DIR)
        self.attempt = Attempt(place, keep, every_seconds, every_steps)
        self._seed = seed
        self._trainer: Any = None
        self._extras: Any = None
        self._process: Any = None  # the strategy's own process_dataloader
        self._pending: Optional[Dict[str, Any]] = None  # loaded, to be put back where the loop was left
        self._first_iter: List[Any] = []  # whether self.log() still resets its averages, until the next batch
        self._boundary: Optional[Dict[str, Any]] = None  # the state where the present validation began
        self._saving = ""
        self._done = self._saved_step = -1
        self._fits = 0

    def resume_path(self) -> Optional[str]:
        """The newest good checkpoint's file for trainer.fit(ckpt_path=…); None if there is nothing to continue from.

        Torn ones are skipped with a sentence. Raises CheckpointError if there are checkpoints and none can be used.
        """
        if self.attempt.directory is None:
            return None
        self.attempt.claim()
        found = folder.newest(self.attempt.directory, FILE, self.attempt.tell)
        return os.path.join(found.path, FILE) if found is not None else None

    # what Lightning calls, in this order

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        lightning_state.require(trainer)
        self.attempt.refuse_several_processes(
            trainer.world_size, "Write the loop with gpusched.checkpoint.Run to train on several devices."
        )
        self._trainer, self._extras = trainer, Extras(pl_module)
        self._process = process = trainer.strategy.process_dataloader
        trainer.strategy.process_dataloader = lambda loader: self._follow(process(loader))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        path = str(trainer.ckpt_path or "")
        resumed = os.path.basename(path) == FILE and os.path.exists(os.path.join(os.path.dirname(path), files.MANIFEST))
        if self.attempt.directory is None and not resumed:
            self._seed = self._seed if self._seed is not None else _initial_seed()
            return
        self._fits += 1
        if resumed:
            self._load(trainer, os.path.dirname(path))
        else:
            self._refuse_to_start_over()
        self._seed = self._seed if self._seed is not None else _initial_seed()

    def _load(self, trainer: Any, path: str) -> None:
        found = files.examine(path)
        if found.problem:
            raise CheckpointError("%s cannot be used: %s." % (path, found.problem), "Resume from resume_path().")
        self.attempt.continued(found)
        whole = folder.read(path)
        tree = dict(whole["own"], seed=whole["shared"]["seed"])
        if self._seed not in (None, tree["seed"]):
            text = "seed=%s is not used: the checkpoint goes on with seed %s"
            self.attempt.tell(text % (self._seed, tree["seed"]))
        self._seed, self._saved_step = tree["seed"], found.step
        trainer.should_stop = tree["state"]["should_stop"]
        if tree["kind"] == END:
            randomness.restore(tree["state"]["rng"])
        self._pending = tree
        self.attempt.tell("resumed from %s (epoch %d, batch %d)" % (found.name, found.epoch, found.batch))
        changed = environment.changes(found.manifest.get("environment", {}), environment.describe(self._modules()))
        if changed:
            self.attempt.tell("%s: the numbers may round differently" % ", ".join(changed))

    def _refuse_to_start_over(self) -> None:
        directory = str(self.attempt.directory)
        if not any(one.good for one in files.list_checkpoints(directory)):
            return
        again = "Give every trainer.fit() its own GpuschedCallback(directory=...)."
        hint = "Pass ckpt_path=callback.resume_path() to trainer.fit(), or move that directory away to start over."
        text = "There are checkpoints in %s, and trainer.fit() was not told to continue from them."
        raise CheckpointError(text % directory, again if self._fits > 1 else hint)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher" and self.attempt.directory:
            raise CheckpointError(
                "training_step(dataloader_iter) fetches batches by itself, so there is no place between two of them.",
                "Take `batch` as the argument of training_step.",
            )
        if type(signal.getsignal(signal.SIGTERM)).__module__.endswith("signal_connector"):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's would end the run without saving
        self.attempt.begin()
        if self._pending is not None and self._pending["kind"] == BATCH:
            # Lightning's rules for a restart are not exact: it begins the epoch as if nothing were, and at the first
            # batch everything is put where it was. The epoch itself counts as begun, so its hooks do not run again.
            trainer.fit_loop.epoch_loop.restarting = False
        elif self._pending is not None and self._pending["kind"] == END:
            self._finish_resume()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._fitting() or trainer.sanity_checking:
            return
        if self._pending is not None:
            self._first_iter = [self._pending["state"]["connector"]["first"]]
            self._finish_resume()
        if self.attempt.directory is not None:
            self._boundary = lightning_state.capture(trainer, self._extras)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._boundary is not None and self._fitting() and not self._trainer.sanity_checking:
            self._safe_point(VALIDATION)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._boundary = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._report(now=True)
        to_be_saved = self.attempt.directory is not None and self._pending is None
        if to_be_saved and self.attempt.save(lambda: self._save(END)) is not None:
            self.attempt.tidy()
        self.attempt.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.attempt.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.attempt.end()
        if self._process is not None:
            trainer.strategy.process_dataloader, self._process = self._process, None
        self._trainer = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Dict[str, Any]) -> None:
        if self._saving == VALIDATION:
            lightning_state.begin_validation_again(checkpoint["loops"]["fit_loop"])

    # data

    def _follow(self, loader: Any) -> Any:
        """Lightning has made a loader ready: give it an order that can be resumed. Called for fit's loaders only."""
        import torch

        if not self._fitting() or isinstance(loader, FollowingLoader):
            return loader
        if self._trainer.training:
            return _TrainLoader(loader, source_of(loader, self.attempt.tell_once), self._train_place, self)
        if isinstance(loader, torch.utils.data.DataLoader):
            return FollowingLoader(loader, source_of(loader, self.attempt.tell_once), self._validation_place)
        return loader

    def _train_place(self, loader: FollowingLoader) -> Place:
        """A loader that is shorter than its neighbours starts again within the epoch: another pass, another order."""
        fit = self._trainer.fit_loop
        done, length = fit.epoch_loop.batch_progress.current.ready, loader.source.length()
        passes, start = divmod(done, length) if length else (0, done)
        number = _number(fit._combined_loader, loader)
        return Place(mix(self._seed, "train", number, fit.epoch_progress.current.processed, passes), start)

    def _validation_place(self, loader: FollowingLoader) -> Place:
        loop = self._trainer.fit_loop.epoch_loop
        number = _number(loop.val_loop._combined_loader, loader)
        return Place(mix(self._seed, self._trainer.state.stage.value, number, loop.batch_progress.total.ready))

    def between(self, walk: Walk, loader: FollowingLoader) -> None:
        """Lightning is about to take a batch: everything of the one before is done, nothing of this one has begun.

        Of several loaders the first one counts. Lightning takes one batch ahead where a loader has no length: then the
        very first call comes before the loop has begun, and is not such a place.
        """
        fetcher = self._trainer.fit_loop._data_fetcher
        if (fetcher.length is None and not walk.handed) or _number(self._trainer.fit_loop._combined_loader, loader):
            return
        if self._first_iter:  # put back by Lightning after a validation, and it was begun without knowing
            self._trainer._logger_connector._first_loop_iter = self._first_iter.pop()
        if self._pending is not None:
            self._finish_resume()
            fetcher.fetched += self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        done = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done == self._done:
            return
        self._done = done
        self._safe_point(BATCH)

    # saving

    def _safe_point(self, kind: str) -> None:
        step = self._trainer.global_step
        self._report()
        request = self.attempt.asked()
        if request is not None:
            self._report(now=True)
            self.attempt.serve(request, lambda: self._save(kind))
        elif kind == BATCH and step != self._saved_step and self.attempt.due(step):
            self.attempt.save(lambda: self._save(kind))
        else:
            return
        self.attempt.tidy()

    def _save(self, kind: str) -> files.Checkpoint:
        trainer = self._trainer
        state = self._boundary if kind == VALIDATION else lightning_state.capture(trainer, self._extras)
        progress, fit = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop
        epoch, batch = fit.epoch_progress.current.processed, progress.current.ready
        position = {"steps": trainer.global_step, "epoch": epoch, "batch": batch}
        tree = {"shared": {"position": position, "seed": self._seed}, "own": {"kind": kind, "state": state}}
        about = {"environment": environment.describe(self._modules())}
        self._saving = kind
        try:
            saved = folder.publish(
                str(self.attempt.directory),
                "lightning",
                lambda place: trainer.save_checkpoint(os.path.join(place, FILE)),
                tree,
                about,
            )
        finally:
            self._saving = ""
        if self._saved_step < 0:
            folder.check_readable(os.path.join(saved.path, FILE), self.attempt.tell)
        self._saved_step = trainer.global_step
        return saved

    def _finish_resume(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        for note in lightning_state.restore(self._trainer, pending["state"], self._extras):
            self.attempt.tell(note)
        self._done = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _report(self, now: bool = False) -> None:
        trainer = self._trainer
        steps = trainer.fit_loop.max_batches / trainer.accumulate_grad_batches
        total = trainer.max_steps if trainer.max_steps > 0 else -(-steps // 1) * (trainer.max_epochs or -1)
        known = 0 < total < float("inf")
        metrics = dict(trainer._logger_connector._logged_metrics)
        self.attempt.at(trainer.current_epoch, trainer.global_step, int(total) if known else None, metrics, now)

    def _fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _modules(self) -> Dict[str, Any]:
        return {"model": self._trainer.lightning_module}


class _TrainLoader(FollowingLoader):
    """A train loader that tells the callback when Lightning is between two batches."""

    def __init__(self, loader: Any, source: Any, where: Any, callback: GpuschedCallback) -> None:
        super().__init__(loader, source, where)
        self.callback = callback

    def __iter__(self) -> "_TrainWalk":
        return _TrainWalk(self, self._where)


class _TrainWalk(Walk):
    def __next__(self) -> Any:
        self._loader.callback.between(self, self._loader)
        return super().__next__()


def _number(combined: Any, loader: Any) -> int:
    """The loader's place among those of its stage."""
    return next((i for i, one in enumerate(combined.flattened) if one is loader), 0)


def _initial_seed() -> int:
    import torch

    return int(torch.initial_seed())
