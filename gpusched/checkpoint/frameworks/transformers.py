"""Hugging Face Trainer: a run that is preempted in the middle of an epoch ends like one that was not.

    from gpusched.checkpoint.frameworks.transformers import preemptible

    trainer = Trainer(model=model, args=args, train_dataset=...)
    trainer.train(resume_from_checkpoint=preemptible(trainer))

Trainer saves and restores weights, optimizer, scheduler, its counters and the random numbers of the main process. What
it forgets is added: random numbers drawn in samples and collators (order and transforms become functions of seed, epoch
and place, for any number of loader workers), the sum of losses since the last log line, states of callbacks. Requests
are served at the end of a step, after that step's log lines, by Trainer's own save; a stop also inside an evaluation,
which starts again.

A checkpoint is Trainer's own directory `checkpoint-N` in args.output_dir, plus our state and a manifest with checksums
that is written last. Torn ones are skipped at a resume, where Trainer takes the highest number.
Must not replace the way in which Trainer saves. Its loader and its saving are wrapped on this one Trainer only.
"""

import importlib
import os
import re
import shutil
import time
from typing import Any, Callable, Dict, Optional

from gpusched import rundir
from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.disk.files import Checkpoint
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.frameworks import sealed
from gpusched.checkpoint.frameworks.attempt import Attempt
from gpusched.checkpoint.frameworks.extras import Extras
from gpusched.checkpoint.frameworks.loaders import plain_loader, source_of, stream_loader
from gpusched.checkpoint.mailbox import Request
from gpusched.checkpoint.state import environment, randomness
from gpusched.checkpoint.state.parts import make_part

TrainerCallback: Any = importlib.import_module("transformers").TrainerCallback
_NAME = re.compile(r"checkpoint-(\d+)")
_OURS = [contents.SHARED, contents.SHARED_TENSORS, contents.OWN % 0, contents.OWN_TENSORS % 0]
_KEPT = [
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
]  # attributes of a Trainer on which its next log lines depend


def preemptible(trainer: Any, seed: Optional[int] = None, extra: Optional[Dict[str, Any]] = None) -> Optional[str]:
    """Prepare a Trainer to be stopped and resumed exactly. Returns what to hand to trainer.train(), None to begin.

    extra: what of the script's own has state, by name: metrics, generators, anything with state_dict() and
    load_state_dict(), lists or dictionaries of plain values. The model's own metrics and generators are found.
    seed: of the order of samples and their random transforms (default: args.data_seed or args.seed).
    Outside gpusched nothing is asked for; the order of the data is the same, and checkpoints are sealed all the same.
    Raises CheckpointError if there are checkpoints and none can be used, or if the run has several processes.
    """
    callback = GpuschedCallback(trainer, seed, extra or {})
    found = callback.prepare()
    trainer.add_callback(callback)
    return found


def latest(output_dir: str, tell: Callable[[str], None] = say) -> Optional[str]:
    """The newest checkpoint-N whose manifest and checksums are right; None if there is none at all.

    Torn ones are skipped with a sentence. Raises CheckpointError if there are checkpoints and none can be used.
    """
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    found = sorted((int(match[1]), match[0]) for match in map(_NAME.fullmatch, names) if match)
    for _, name in reversed(found):
        path = os.path.join(output_dir, name)
        problem = sealed.problem(path)
        if not problem:
            return path
        tell("skipping %s: %s" % (name, problem))
    if found:
        raise CheckpointError(
            "None of the %d checkpoint(s) in %s can be used." % (len(found), output_dir),
            "Choose one yourself with trainer.train(resume_from_checkpoint=...), or move them away to start over.",
        )
    return None


class GpuschedCallback(TrainerCallback):  # type: ignore[misc]
    """Asks for requests, seals what Trainer saves, puts back what it forgets. Made by preemptible()."""

    def __init__(self, trainer: Any, seed: Optional[int], extra: Dict[str, Any]) -> None:
        self.trainer, self.args = trainer, trainer.args
        self._parts = {name: make_part(name, target, {}) for name, target in extra.items()}
        self._extras = Extras(trainer.model)
        inside = rundir.ENV_JOB_DIR in os.environ or rundir.ENV_CHECKPOINT_DIR in os.environ
        self.attempt = Attempt(self.args.output_dir if inside else None, 1, None, None)
        self._seed, self._found = seed, ""
        self._own: Optional[Dict[str, Any]] = None
        self._request: Optional[Request] = None
        self._loader: Any = None
        self._later = False  # resumed in mid-epoch: the random numbers come back after the first batches
        self._failed: Optional[Exception] = None  # why Trainer's last save did not succeed
        self._before: Optional[Dict[str, Any]] = None  # where the present evaluation began
        self._save_later = False  # a save that Trainer meant for an epoch's last step waits for the epoch's end
        self._logs: Dict[str, Any] = {}

    def prepare(self) -> Optional[str]:
        """Key the data, find the newest checkpoint. See preemptible()."""
        args = self.args
        self.attempt.refuse_several_processes(
            args.world_size, "Write the loop with gpusched.checkpoint.Run to train on several devices."
        )
        self.attempt.claim()
        path = latest(args.output_dir, self.attempt.tell)
        if path is not None:
            self._found, tree = path, contents.read(path)[0]
            self._own, saved_seed = tree["own"], tree["shared"]["seed"]
            if self._seed not in (None, saved_seed):
                text = "seed=%s is not used: the checkpoint goes on with seed %s"
                self.attempt.tell(text % (self._seed, saved_seed))
            self._seed = saved_seed
        if self._seed is None:
            self._seed = args.seed if args.data_seed is None else args.data_seed
        make, save = self.trainer.get_train_dataloader, self.trainer._save_checkpoint
        self.trainer.get_train_dataloader = lambda: self._keyed(make())
        self.trainer._save_checkpoint = lambda *given, **named: self._save(save, *given, **named)
        self._keep_callbacks_states()
        if args.save_only_model:
            raise CheckpointError(
                "save_only_model=True leaves the optimizer out of the checkpoints.",
                "Set it to False to resume exactly.",
            )
        if args.save_total_limit == 1:
            self.attempt.tell(
                "save_total_limit=1: Trainer deletes the old checkpoint before the new one is safe; use 2"
            )
        return path

    def _keep_callbacks_states(self) -> None:
        """Trainer restores the counters of EarlyStoppingCallback and the like only if it is told to."""
        exportable: Any = importlib.import_module("transformers.trainer_callback").ExportableState
        if any(isinstance(one, exportable) for one in self.trainer.callback_handler.callbacks):
            self.args.restore_callback_states_from_checkpoint = True

    def _keyed(self, prepared: Any) -> Any:
        """Trainer's loader, in an order and with transforms that depend only on seed, epoch and place."""
        import torch

        from gpusched.checkpoint.data.exact import exact_loader

        plain = plain_loader(prepared)
        if isinstance(plain.dataset, torch.utils.data.IterableDataset):
            self.attempt.tell_once(
                "the training set is iterable: after a stop in mid-epoch its batches are produced again to skip them"
            )
            self._loader = stream_loader(source_of(plain, self.attempt.tell_once), int(self._seed or 0))
        else:
            self._loader = exact_loader(plain, seed=self._seed)
        return self._loader

    # what Trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._found and state.global_step == 0:
            raise CheckpointError(
                "There is %s, and trainer.train() was not told to continue from it." % self._found,
                "Write trainer.train(resume_from_checkpoint=preemptible(trainer)), or move it away to start over.",
            )
        self.attempt.begin()
        if state.global_step:
            self._resume(state)

    def _resume(self, state: Any) -> None:
        path = os.path.join(self.args.output_dir, "checkpoint-%d" % state.global_step)
        if self._own is None or os.path.abspath(path) != os.path.abspath(self._found):
            self.attempt.tell("resumed from a checkpoint that preemptible() did not choose: not bit for bit")
            return
        for name, value in self._own["trainer"].items():
            here: Any = getattr(self.trainer, name, None)
            setattr(self.trainer, name, value.to(here.device) if hasattr(here, "device") else value)
        notes = self._extras.restore(self._own["extras"])
        for key in sorted(set(self._parts) ^ set(self._own["parts"])):
            notes.append("extra %r is not both in the checkpoint and in the script: the run is not exact" % key)
        for key, part in self._parts.items():
            if key in self._own["parts"]:
                part.restore(self._own["parts"][key])
        notes += randomness.restore(self._own["rng"])  # before the hooks of an epoch that begins
        self._later = not float(state.epoch or 0).is_integer()
        self.trainer._load_rng_state = lambda checkpoint: self._restore_random_numbers()
        changed = environment.changes(sealed.about(path).get("environment", {}), self._environment())
        if changed:
            notes.append("%s: the numbers may round differently" % ", ".join(changed))
        self.attempt.tell("resumed from checkpoint-%d (epoch %.2f)" % (state.global_step, state.epoch or 0))
        for note in notes:
            self.attempt.tell(note)
        self.args.eval_on_start = False  # it was done at the start
        if self._own["evaluating"] is not None:
            self._evaluate_again(state, self._own["evaluating"])

    def _evaluate_again(self, state: Any, before: Dict[str, Any]) -> None:
        """The run was stopped inside an evaluation: do it from its beginning, and what was to follow it."""
        trainer = self.trainer
        control, self._before = trainer.control, dict(before, rng=randomness.capture(), saved=True)
        control.should_log, control.should_evaluate, control.should_save = False, True, before["save"]
        trainer._maybe_log_save_evaluate(trainer._tr_loss, None, trainer.model, None, state.epoch, None, time.time())
        if self._own is not None:
            self._own["rng"] = randomness.capture()
        if control.should_training_stop:
            self.attempt.tell(
                "the repeated evaluation ends the training early: Trainer makes one step more than before"
            )

    def _restore_random_numbers(self) -> None:
        """Trainer calls this when the first batches are there; where an epoch begins, after its hooks have run."""
        if self._later and self._own is not None:
            randomness.restore(self._own["rng"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._loader is not None:  # skip_first_batches builds a loader that Trainer cannot tell its epoch
            self._loader.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The last step of an epoch is not complete before what belongs to the epoch's end: evaluation, log lines."""
        self._report(state)
        if float(state.epoch).is_integer():
            self._save_later, control.should_save = control.should_save, False
        else:
            self._look(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_save, self._save_later = control.should_save or self._save_later, False
        self._look(control)

    def _look(self, control: Any) -> None:
        """After this Trainer logs, evaluates and saves, in this order, as `control` says."""
        save, request = control.should_save, self.attempt.asked()
        if request is not None and not control.should_training_stop:
            control.should_save, self._request = True, request
        if control.should_evaluate and self.attempt.directory is not None:
            self._before = {"rng": randomness.capture(), "save": save, "saved": False}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Evaluations may be long: a stop does not wait for their end. They are done again after it."""
        if self._before is None or not self.trainer.is_in_train:
            return
        request = self._request or self.attempt.asked()
        if request is not None and request.stop:
            self._report(state, now=True)
            self.attempt.serve(request, lambda: self._save_in_evaluation(state))

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._before = None

    def _save_in_evaluation(self, state: Any) -> Checkpoint:
        if self._before is not None and self._before["saved"]:  # nothing has happened since it was resumed
            return Checkpoint(self._found, state.global_step, 0)
        self.trainer._save_checkpoint(self.trainer.model, None)
        return self._seal(os.path.join(self.args.output_dir, "checkpoint-%d" % state.global_step), state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self._logs = dict(logs or {})

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        path = os.path.join(args.output_dir, "checkpoint-%d" % state.global_step)
        request, self._request = self._request, None
        if request is None or control.should_training_stop:  # training is over in a moment: let it end
            self.attempt.save(lambda: self._seal(path, state))
            return
        self._report(state, now=True)
        self.attempt.serve(request, lambda: self._seal(path, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._report(state, now=True)
        self.attempt.end()

    # saving

    def _save(self, save: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Trainer's own save. A disk that is full must not end the training; a stop that cannot be saved leaves."""
        path = os.path.join(self.args.output_dir, "checkpoint-%d" % self.trainer.state.global_step)
        if os.path.isdir(path):  # this step is saved again
            sealed.unseal(path, _OURS)
        try:
            save(*given, **named)
        except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
            if self.attempt.directory is None:
                raise
            self._failed = error
            shutil.rmtree(path, ignore_errors=True)

    def _seal(self, path: str, state: Any) -> Checkpoint:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        began, created = time.monotonic(), time.time()
        trainer = self.trainer
        kept = {name: getattr(trainer, name) for name in _KEPT if hasattr(trainer, name)}
        if "_tr_loss" not in kept:
            self.attempt.tell_once(
                "this Trainer keeps its loss sum to itself: the first log line after a resume differs"
            )
        parts = {name: part.capture() for name, part in self._parts.items()}
        before = self._before or {"rng": randomness.capture()}
        own = {"trainer": kept, "rng": before["rng"], "extras": self._extras.capture(), "parts": parts}
        own["evaluating"] = {"save": before["save"]} if self._before is not None else None
        where = {"steps": state.global_step, "epoch": int(state.epoch or 0), "batch": 0}
        tree = {"shared": {"position": where, "seed": self._seed}, "own": own}
        contents.write_shared(path, tree)
        contents.write_own(path, 0, tree)
        about = {"framework": "transformers", "step": state.global_step, "epoch": where["epoch"]}
        about.update(environment=self._environment(), created_at=created)
        size = sealed.seal(path, dict(about, seconds=round(time.monotonic() - began, 6)))
        return Checkpoint(path, state.global_step, 0, epoch=where["epoch"], created_at=created, size=size)

    def _environment(self) -> Dict[str, Any]:
        return environment.describe({"model": self.trainer.model})

    def _report(self, state: Any, now: bool = False) -> None:
        self.attempt.at(int(state.epoch or 0), state.global_step, state.max_steps or None, self._logs, now)
