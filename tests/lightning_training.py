"""A Lightning training script with everything that is easy to forget, for test_frameworks_resume.py.

Dropout, BatchNorm, augmentation from python, numpy and torch in loader workers, AdamW with OneCycleLR, averages of
self.log() over an epoch, torchmetrics, a generator of the module's own, a validation that draws random numbers, and
batch-level randomness after the transfer. What the logger was told is written to a file that attempts append to.
"""

import argparse
import importlib
import json
import os
import random
import resource
import signal
import warnings

import numpy
import torch
from torch import nn

warnings.filterwarnings("ignore")
parser = argparse.ArgumentParser()
parser.add_argument("--out", required=True)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--check-every", type=float, default=1.0)
parser.add_argument("--package", default="lightning.pytorch")
parser.add_argument("--iterable", action="store_true")
parser.add_argument("--plateau", action="store_true")
parser.add_argument("--two-loaders", action="store_true")
parser.add_argument("--every-steps", type=int)
parser.add_argument("--terminate-at", type=int, default=-1)
parser.add_argument("--small-disk", action="store_true")
parser.add_argument("--forget", action="store_true")
args = parser.parse_args()
pl = importlib.import_module(args.package)

import torchmetrics  # noqa: E402

from gpusched.checkpoint import digest  # noqa: E402
from gpusched.checkpoint.frameworks.lightning import GpuschedCallback  # noqa: E402


def make_sample(index):
    point = torch.sin(torch.arange(8.0) * (index + 1))
    noise = random.random() + numpy.random.rand() + float(torch.rand(()))
    return index, point * (1 + 0.1 * noise), (index * 7) % 3


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 44

    def __getitem__(self, index):
        return make_sample(index)


class Stream(torch.utils.data.IterableDataset):
    """Without a length: Lightning fetches one batch ahead."""

    def __iter__(self):
        return map(make_sample, range(44))


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"width": 16})
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )  # fmt: skip
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.mean = torchmetrics.MeanMetric()
        self.validated = torchmetrics.MeanMetric()
        self.own = torch.Generator().manual_seed(7)
        self.seen = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.trainer.training or args.two_loaders:
            return batch
        index, points, labels = batch
        return index, points + 0.01 * torch.randn(8), labels

    def training_step(self, batch, number):
        extra = 0.0
        if args.two_loaders:
            (index, points, labels), (others, *_) = batch
            extra = 0.001 * float(others.sum())
        else:
            index, points, labels = batch
        self.seen.append([self.current_epoch, number, index.tolist()])
        output = self.layers(points + 0.01 * torch.randn(8, generator=self.own))
        loss = nn.functional.cross_entropy(output, labels) * (1 + 0.01 * random.random()) + extra
        self.accuracy(output, labels)
        self.mean.update(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_):
        if self.global_step == args.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_end(self):
        self.log("own mean", self.mean.compute())
        self.mean.reset()

    def validation_step(self, batch, number):
        _, points, labels = batch
        loss = nn.functional.cross_entropy(self.layers(points), labels) + 0.1 * torch.rand(()) + 0.1 * random.random()
        self.validated.update(loss)
        self.log("validation loss", loss)
        self.log("validation mean", self.validated)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if args.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            plan = {"scheduler": scheduler, "monitor": "validation loss", "strict": False}
            return {"optimizer": optimizer, "lr_scheduler": plan}
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=200)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def logger_module():
    return importlib.import_module(args.package + ".loggers")


class Lines(logger_module().Logger):
    name, version = "lines", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        with open(args.out + ".log", "a") as file:
            file.write(json.dumps([step, metrics]) + "\n")


def main():
    torch.set_num_threads(1)
    if args.small_disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    pl.seed_everything(1, verbose=False)
    torch.randn(random.randrange(1, 5))
    model = Model()
    data = Stream() if args.iterable else Augmented()
    loader = torch.utils.data.DataLoader(
        data, batch_size=8, shuffle=None if args.iterable else True, num_workers=args.workers
    )
    if args.two_loaders:
        short = torch.utils.data.DataLoader(torch.utils.data.Subset(data, range(10)), batch_size=4, shuffle=True)
        loader = [loader, short]
    held_out = torch.utils.data.Subset(Augmented(), range(12))
    validation = torch.utils.data.DataLoader(held_out, batch_size=4, num_workers=min(1, args.workers))
    callback = GpuschedCallback(every_steps=args.every_steps)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=Lines(), callbacks=[callback], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        accumulate_grad_batches=args.accumulate, val_check_interval=args.check_every,
        check_val_every_n_epoch=2 if args.plateau else 1,  # the last epoch's scheduler looks at an older validation
    )  # fmt: skip
    trainer.fit(model, loader, validation, ckpt_path=None if args.forget else callback.resume_path())
    optimizer = trainer.optimizers[0]
    result = {"model": digest(model), "optimizer": digest(optimizer), "mean": float(model.validated.mean_value)}
    result["scheduler"] = digest(trainer.lr_scheduler_configs[0].scheduler)
    result["logged"] = {key: float(value) for key, value in trainer.logged_metrics.items()}
    result["steps"] = trainer.global_step
    result["following"] = [random.random(), float(torch.rand(())), float(torch.rand((), generator=model.own))]
    with open(args.out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
