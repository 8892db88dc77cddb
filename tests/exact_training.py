"""A training script with everything that is easy to forget, for test_exact_resume.py.

BatchNorm, dropout, bf16 autocast and GradScaler, AdamW, OneCycleLR, an EMA, two micro batches per step, augmentation
from python, numpy and torch, own generators, a metric in progress, an evaluation that draws from the global generator,
code before and after the loop over batches. `--hold STEP` waits before that step until a request is there, and
`--hold-evaluation EPOCH` inside that epoch's evaluation, so that stops happen exactly where a test wants them.
"""

import argparse
import json
import os
import random
import time

import numpy
import torch
from torch import nn

from gpusched.checkpoint import Run, digest


class Augmented(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.points, self.rng = torch.randn(100, 8, generator=generator), numpy.random.default_rng(3)

    def __len__(self):
        return 100

    def __getitem__(self, index):
        noise = random.random() + numpy.random.rand() + float(torch.rand(())) + self.rng.random()
        return index, self.points[index] * (1 + 0.1 * noise), (index * 7) % 3


class Mean:
    """A metric in progress."""

    def __init__(self):
        self.total, self.seen = torch.zeros(()), 0

    def reset(self):
        self.total, self.seen = torch.zeros(()), 0

    def state_dict(self):
        return {"total": self.total, "seen": self.seen}

    def load_state_dict(self, state):
        self.total, self.seen = state["total"], state["seen"]


def hold(here):
    """Wait until the test has asked for something."""
    if here:
        directory = os.environ["GPUSCHED_JOB_DIR"]
        with open(os.path.join(directory, "holding"), "w"):
            pass
        while not os.path.exists(os.path.join(directory, "request")):
            time.sleep(0.002)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--persistent", action="store_true")
    parser.add_argument("--weighted", action="store_true")
    parser.add_argument("--hold", type=int, default=-1)
    parser.add_argument("--hold-evaluation", type=int, default=-1)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def make_loader(args):
    data = Augmented()
    order = {"shuffle": True}
    if args.weighted:
        order = {"sampler": torch.utils.data.WeightedRandomSampler(range(1, 101), 100)}
    persistent = args.persistent and args.workers > 0
    return torch.utils.data.DataLoader(
        data, batch_size=8, num_workers=args.workers, persistent_workers=persistent, **order
    )


@torch.no_grad()
def evaluate(run, model, args, epoch):
    """On a plain loader, whose iterator draws from the global generator; with dropout left on, to draw more."""
    model.eval()
    model[3].train()
    held_out = torch.utils.data.TensorDataset(torch.arange(24.0).reshape(12, 2))
    score = 0.0
    for number, (pair,) in enumerate(torch.utils.data.DataLoader(held_out, batch_size=4, shuffle=True)):
        score += float(model(pair.repeat(1, 4) / 24).square().mean())
        hold(args.hold_evaluation == epoch and number == 1)
        run.check()
    return score


def main():
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )  # fmt: skip
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    loader = make_loader(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=3 * 7)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    own, own_numpy, metric, history = torch.Generator().manual_seed(7), numpy.random.default_rng(8), Mean(), []
    run = Run(model, optimizer, scheduler, scaler, ema, metric, {"history": history}, {"own": own, "np": own_numpy})
    for epoch in run.epochs(3):
        model.train()
        metric.reset()
        run.values["loss sum"], seen = 0.0, run.values.setdefault("seen", [])
        shift = torch.randn(8) * 0.01 + random.random() * 0.01  # drawn before the loop over batches
        for index, points, labels in run.batches(loader):
            seen.append([epoch, index.tolist()])
            noise = torch.randn(8, generator=own) * 0.01 + own_numpy.random() * numpy.random.rand() * 0.1
            points = points + shift + noise
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(points.float()), labels) * (1 + 0.01 * random.random())
            scaler.scale(loss / 2).backward()
            run.values["loss sum"] += loss.item()
            metric.total, metric.seen = metric.total + loss.detach(), metric.seen + 1
            if run.batch % 2 == 0 and run.batch != 12:
                continue
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            ema.update_parameters(model)
            hold(args.hold == run.steps + 1)
            run.step(loss=loss.item())
        history.append([epoch, evaluate(run, model, args, epoch), run.values["loss sum"], float(metric.total)])
    result = {name: digest(tree) for name, tree in run.state().items()}
    following = [random.random(), float(torch.rand(())), numpy.random.rand(), float(torch.rand((), generator=own))]
    result.update(history=history, seen=run.values["seen"], steps=run.steps, following=following)
    with open(args.out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
