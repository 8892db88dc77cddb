#!/usr/bin/env python3
"""Train a small classifier: the example to copy. Runs by hand, and under gpusched it can be preempted at any step.

    python train_mlp.py --epochs 3
    gpusched submit train_mlp.py --epochs 30 --slow-ms 20

Four lines make it resumable: Run(...), run.epochs, run.batches, run.step. Everything else is an ordinary loop.
Same arguments, same seed: same weights at the end, bit for bit, however often it was stopped on the way.
"""

import argparse
import json
import math
import sys
import time

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("train_mlp.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

FEATURES, CLASSES = 16, 4


class Spirals(torch.utils.data.Dataset):
    """Points on spiral arms, one arm per class; each look at a point adds fresh noise, like any augmentation."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % CLASSES
        radius = torch.rand(count, generator=generator)
        angle = 4.0 * radius + 2 * math.pi * self.labels / CLASSES
        flat = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.points = flat @ torch.randn(2, FEATURES, generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.points[index] + 0.02 * torch.randn(FEATURES), self.labels[index]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a small classifier that can be preempted at any step.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2048, help="size of the data set (default 2048)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--lr", type=float, default=0.01, help="highest learning rate of the one cycle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--slow-ms", type=float, default=0.0, help="wait this long in every step, to watch it")
    parser.add_argument("--out", help="write the final loss, the loss curve and the digest of the weights to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    hidden = args.hidden
    model = nn.Sequential(
        nn.Linear(FEATURES, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(hidden, CLASSES),
    ).to(device)  # fmt: skip
    data = Spirals(args.samples, args.seed)
    loader = torch.utils.data.DataLoader(
        data, batch_size=args.batch, shuffle=True, drop_last=True, num_workers=args.workers
    )
    if len(loader) == 0:
        sys.exit("--samples %d is less than one batch of %d" % (args.samples, args.batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler)
    curve = run.values.setdefault("curve", [])  # saved and restored with the rest
    for epoch in run.epochs(args.epochs):
        model.train()
        for points, labels in run.batches(loader):
            points, labels = points.to(device), labels.to(device)
            loss = nn.functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            curve.append(loss.item())
            time.sleep(args.slow_ms / 1000)
            run.step(loss=curve[-1])
        numbers = (epoch + 1, args.epochs, run.steps, mean(curve, len(loader)))
        print("epoch %d/%d  step %d  loss %.4f" % numbers, flush=True)

    result = {"steps": run.steps, "final_loss": mean(curve, len(loader)), "weights": digest(model), "curve": curve}
    print("final loss %.4f  weights sha256 %s" % (result["final_loss"], result["weights"][:16]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


def mean(curve, count):
    """The average of the last `count` losses."""
    last = curve[-count:]
    return sum(last) / len(last) if last else float("nan")


if __name__ == "__main__":
    main()
