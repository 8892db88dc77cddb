"""The same small training for each tool, as its documentation says how to save and resume; see compare_resume.py.

Two workers with random augmentation, dropout, BatchNorm, AdamW, OneCycleLR, a torchmetrics sum over the epoch. Each
`train_*` trains 3 epochs of 6 batches; with `stop` it is preempted after that many batches, in the middle of an epoch,
and without it goes on from what lies in `folder`, if anything does. Lines that are there for saving and resuming only
end in `# +`, and are counted.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate
import lightning.pytorch as pl
import numpy
import submitit
import torch
import torchmetrics
import transformers
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from gpusched.checkpoint import Run, digest

EPOCHS, BATCHES, SAMPLES = 3, 6, 44


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = random.random() + numpy.random.rand() + float(torch.rand(()))
        point = torch.sin(torch.arange(8.0) * (index + 1)) * (1 + 0.1 * noise)
        return {"index": index, "noise": noise, "points": point, "labels": (index * 7) % 3}


class Net(nn.Module):
    """Gives a dictionary with a loss, as Hugging Face's Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )  # fmt: skip

    def forward(self, points, labels, index=None, noise=None):
        return {"loss": nn.functional.cross_entropy(self.layers(points), labels)}


class Record:
    """What a run did, batch by batch; a batch that is done twice counts as it was done last."""

    def __init__(self, folder, ask_at=None):
        self.path, self.ask_at = Path(folder) / "batches", ask_at

    def note(self, number, batch):
        state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        noise = dict(zip(batch["index"].tolist(), batch["noise"].tolist(), strict=True))
        with self.path.open("a") as file:
            file.write(json.dumps({"batch": number, "noise": noise, "random": state}) + "\n")
        if number + 1 == self.ask_at:  # what gpusched does at a preemption
            Path(os.environ["GPUSCHED_JOB_DIR"], "request").write_text(json.dumps({"ask": "stop", "seq": 1}))

    def epoch(self, number, metric):
        with self.path.with_name("epochs").open("a") as file:
            file.write(json.dumps({"epoch": number, "metric": float(metric)}) + "\n")

    def finish(self, model, optimizer):
        result = {"weights": digest(model), "optimizer": digest(optimizer)}
        self.path.with_name("result").write_text(json.dumps(result))


def begin():
    torch.set_num_threads(1)
    transformers.set_seed(1)


def make_loader(kind=torch.utils.data.DataLoader):
    return kind(Augmented(), batch_size=8, shuffle=True, num_workers=2)


def make_parts():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * BATCHES)
    return model, optimizer, scheduler


# gpusched


def train_gpusched_run(folder, stop):
    begin()
    record, loader, metric = Record(folder, stop), make_loader(), torchmetrics.SumMetric()
    model, optimizer, scheduler = make_parts()
    run = Run(model, optimizer, scheduler, metrics=metric)  # +
    for epoch in run.epochs(EPOCHS):  # +
        metric.reset()
        for batch in run.batches(loader):  # +
            loss = model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            metric.update(len(batch["index"]))
            record.note(run.steps, batch)
            run.step(loss=loss)  # +
        record.epoch(epoch, metric.compute())
    record.finish(model, optimizer)


def train_gpusched_lightning(folder, stop):
    from gpusched.checkpoint.frameworks.lightning import GpuschedCallback  # +

    begin()
    callback = GpuschedCallback()  # +
    module, path = Module(folder, None), callback.resume_path()  # +
    module.record.ask_at = stop
    _fit(module, make_loader(), [callback], path)  # +


def train_gpusched_trainer(folder, stop):
    from gpusched.checkpoint.frameworks.transformers import preemptible  # +

    begin()
    trainer = _trainer(folder, [])
    trainer.record.ask_at = stop
    _finish_trainer(trainer, folder, preemptible(trainer, extra={"metric": trainer.metric}))  # +


def train_gpusched_accelerate(folder, stop):
    from gpusched.checkpoint.frameworks.accelerate import AcceleratedRun  # +

    begin()
    record, metric = Record(folder, stop), torchmetrics.SumMetric()
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, scheduler, loader = accelerator.prepare(*make_parts(), make_loader())
    run = AcceleratedRun(accelerator, metrics=metric)  # +
    for epoch in run.epochs(EPOCHS):  # +
        metric.reset()
        for batch in run.batches(loader):  # +
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            metric.update(len(batch["index"]))
            record.note(run.steps, batch)
            run.step(loss=loss)  # +
        record.epoch(epoch, metric.compute())
    record.finish(model, optimizer.optimizer)


# Lightning


class Module(pl.LightningModule):
    def __init__(self, folder, stop):
        super().__init__()
        self.net, self.metric, self.stop, self.record = Net(), torchmetrics.SumMetric(), stop, Record(folder)

    def training_step(self, batch, number):
        loss = self.net(**batch)["loss"]
        self.metric.update(len(batch["index"]))
        self.log("loss", loss)
        self.log("samples", self.metric, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs, batch, number):
        self.record.note(self.global_step - 1, batch)
        if self.global_step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)  # the preemption

    def on_train_epoch_end(self):
        self.record.epoch(self.current_epoch, self.metric.compute())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _fit(module, loader, callbacks, path):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=module.stop is not None,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=path)
    module.record.finish(module, trainer.optimizers[0])


def train_lightning(folder, stop, kind=torch.utils.data.DataLoader):
    begin()
    path = os.path.join(folder, "on_exception.ckpt")  # +
    found = path if os.path.exists(path) else None  # +
    callbacks = [OnExceptionCheckpoint(folder)] if stop else []  # +
    _fit(Module(folder, stop), make_loader(kind), callbacks, found)  # +


def train_lightning_stateful(folder, stop):
    train_lightning(folder, stop, StatefulDataLoader)  # +


# Hugging Face Trainer


class RecordingTrainer(transformers.Trainer):
    def __init__(self, folder, *args, **options):
        super().__init__(*args, **options)
        self.record, self.metric = Record(folder), torchmetrics.SumMetric()

    def training_step(self, model, inputs, *args):
        if self.state.global_step % BATCHES == 0:
            self.metric.reset()
        self.metric.update(len(inputs["index"]))
        result = super().training_step(model, inputs, *args)
        self.record.note(self.state.global_step, inputs)
        if self.state.global_step % BATCHES == BATCHES - 1:
            self.record.epoch(self.state.global_step // BATCHES, self.metric.compute())
        return result


class Preemption(transformers.TrainerCallback):
    def __init__(self, stop, end):
        self.stop, self.end = stop, end

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(4 if self.end is None else 0)  # its handler waits three seconds before it asks for a save

    def on_save(self, args, state, control, **more):
        if state.global_step == self.stop and self.end is not None:
            os._exit(self.end)


def _trainer(folder, callbacks, **options):
    arguments = transformers.TrainingArguments(
        os.path.join(folder, "checkpoints"), per_device_train_batch_size=8, num_train_epochs=EPOCHS, use_cpu=True,
        dataloader_num_workers=2, report_to=[], disable_tqdm=True, remove_unused_columns=False, seed=1, max_grad_norm=0,
        **options,
    )  # fmt: skip
    model, optimizer, scheduler = make_parts()
    return RecordingTrainer(
        folder, model, arguments, train_dataset=Augmented(), optimizers=(optimizer, scheduler), callbacks=callbacks,
        data_collator=torch.utils.data.default_collate,
    )  # fmt: skip


def _finish_trainer(trainer, folder, path):
    trainer.train(resume_from_checkpoint=path)
    if trainer.state.global_step < EPOCHS * BATCHES:  # preempted: Trainer returns as if it were done
        sys.exit(1)
    trainer.record.finish(trainer.model, trainer.optimizer.optimizer)


def train_trainer(folder, stop):
    """Saves every three steps; preempted just after a save, so that nothing is lost."""
    begin()
    if stop:
        signal.signal(signal.SIGTERM, lambda *_: None)
    trainer = _trainer(folder, [Preemption(stop, 1)], save_steps=3)  # +
    found = transformers.trainer_utils.get_last_checkpoint(trainer.args.output_dir) if not stop else None  # +
    _finish_trainer(trainer, folder, found)  # +


def train_trainer_jit(folder, stop):
    begin()
    options = {"save_strategy": "no", "enable_jit_checkpoint": True}  # +
    trainer = _trainer(folder, [Preemption(stop, None)] if stop else [], **options)  # +
    found = os.path.isdir(trainer.args.output_dir) and os.listdir(trainer.args.output_dir)
    path = transformers.trainer_utils.get_last_checkpoint(trainer.args.output_dir) if found else None  # +
    _finish_trainer(trainer, folder, path)  # +


# accelerate


def train_accelerate(folder, stop, stateful=False):
    begin()
    record, metric, place = Record(folder), torchmetrics.SumMetric(), os.path.join(folder, "state")
    metric.persistent(True)  # +
    options = accelerate.DataLoaderConfiguration(use_stateful_dataloader=stateful, use_seedable_sampler=True)  # +
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=options)  # +
    model, optimizer, scheduler, loader = accelerator.prepare(*make_parts(), make_loader())
    accelerator.register_for_checkpointing(metric)  # +
    done = 0  # +
    if os.path.exists(place):  # +
        accelerator.load_state(place)  # +
        done = int(Path(folder, "done").read_text())  # +
    for epoch in range(done // BATCHES, EPOCHS):  # +
        skip = done % BATCHES if epoch == done // BATCHES else 0  # +
        if not skip:  # +
            metric.reset()
        loader.set_epoch(epoch)  # +
        batches = loader if stateful or not skip else accelerator.skip_first_batches(loader, skip)  # +
        for number, batch in enumerate(batches, epoch * BATCHES + skip):  # +
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            metric.update(len(batch["index"]))
            record.note(number, batch)
            if number + 1 == stop:  # the preemption  # +
                accelerator.save_state(place)  # +
                Path(folder, "done").write_text(str(number + 1))  # +
                sys.exit(1)  # +
        record.epoch(epoch, metric.compute())
    record.finish(model, optimizer.optimizer)


def train_accelerate_stateful(folder, stop):
    train_accelerate(folder, stop, stateful=True)  # +


# submitit


class NetworkTraining:
    """The recipe of submitit's documentation, with what belongs to it: optimizer, scheduler, the present epoch."""

    def __call__(self, folder, stop):
        begin()
        path, record, loader, first = Path(folder, "network"), Record(folder), make_loader(), 0
        metric = torchmetrics.SumMetric()
        self.model, self.optimizer, self.scheduler = make_parts()  # +
        if path.exists():  # +
            state = torch.load(path)  # +
            self.model.load_state_dict(state["model"])  # +
            self.optimizer.load_state_dict(state["optimizer"])  # +
            self.scheduler.load_state_dict(state["scheduler"])  # +
            first, stop = state["epoch"], None  # +
        number = first * BATCHES
        for self.epoch in range(first, EPOCHS):  # +
            metric.reset()
            for batch in loader:
                loss = self.model(**batch)["loss"]
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if self.scheduler.last_epoch < EPOCHS * BATCHES:
                    self.scheduler.step()
                metric.update(len(batch["index"]))
                record.note(number, batch)
                number += 1
                if number == stop:
                    os.kill(os.getpid(), signal.SIGUSR2)  # the preemption
            record.epoch(self.epoch, metric.compute())
        record.finish(self.model, self.optimizer)

    def checkpoint(self, folder, stop):  # +
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}  # +
        state = {name: one.state_dict() for name, one in parts.items()}  # +
        torch.save(dict(state, epoch=self.epoch), Path(folder, "network"))  # +
        return submitit.helpers.DelayedSubmission(NetworkTraining(), folder, stop)  # +


def train_submitit(folder, stop):
    executor = submitit.LocalExecutor(os.path.join(folder, "logs"))
    executor.update_parameters(timeout_min=5)
    executor.submit(NetworkTraining(), folder, stop).result()
