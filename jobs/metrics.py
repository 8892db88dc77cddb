#!/usr/bin/env python3
"""Measure with torchmetrics while training: a stop in the middle of an epoch must not change a single count.

    python metrics.py --epochs 6
    gpusched submit metrics.py --epochs 6

Accuracy, F1 and a confusion matrix in a MetricCollection, and a metric of our own. Registered as `metrics=`, their
states are saved with the number of updates, both of which torchmetrics leaves out of its state_dict by default.
"""

import argparse
import json
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("metrics.py needs PyTorch: pip install 'gpusched[torch]'")
try:
    from torchmetrics import Metric, MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
except ImportError:
    sys.exit("metrics.py needs torchmetrics: pip install torchmetrics")

from gpusched.checkpoint import Run, digest

FEATURES, CLASSES = 8, 4


class Overconfidence(Metric):
    """How much surer the model is than right: its mean probability minus its share of right answers."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("sure", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds, target):
        sure, guess = preds.softmax(1).max(1)
        self.sure += sure.sum()
        self.right += (guess == target).sum()
        self.count += len(target)

    def compute(self):
        return (self.sure - self.right) / self.count


def clouds(count, seed):
    """Overlapping clouds of points; the first class is four times as frequent as the last, so F1 is not accuracy."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([4.0, 3.0, 2.0, 1.0])
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    return centres[labels] + 0.9 * torch.randn(count, FEATURES, generator=generator), labels


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train with metrics whose state survives a preemption.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write all metrics of all epochs and the digest of the weights to this file")
    return parser.parse_args()


def plain(values):
    """Metrics as numbers and lists, for JSON and for run.values."""
    return {name: value.tolist() for name, value in values.items()}


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    data = torch.utils.data.TensorDataset(*clouds(args.samples, args.seed))
    unseen = args.samples // 4
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(data, range(unseen, args.samples)), args.batch, shuffle=True
    )
    held_out = torch.utils.data.DataLoader(torch.utils.data.Subset(data, range(unseen)), args.batch)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, CLASSES)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    training = MetricCollection({
        "accuracy": MulticlassAccuracy(CLASSES, average="micro"),
        "f1": MulticlassF1Score(CLASSES, average="macro"),
        "confusion": MulticlassConfusionMatrix(CLASSES),
        "overconfidence": Overconfidence(),
    }).to(device)  # fmt: skip
    testing = training.clone()

    run = Run(model=model, optimizer=optimizer, metrics={"training": training, "testing": testing})
    history = run.values.setdefault("history", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        training.reset()
        for inputs, wanted in run.batches(loader):
            inputs, wanted = inputs.to(device), wanted.to(device)
            guess = model(inputs)
            loss = nn.functional.cross_entropy(guess, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch = training(guess.detach(), wanted)  # the values of this batch; the collection adds up the epoch's
            run.step(loss=loss.item(), accuracy=float(batch["accuracy"]))
        model.eval()
        testing.reset()
        with torch.no_grad():
            for inputs, wanted in run.batches(held_out):  # by run.batches, so that a stop in here resumes in here
                testing.update(model(inputs.to(device)), wanted.to(device))
                run.check()
        history.append({"training": plain(training.compute()), "testing": plain(testing.compute())})
        seen = history[-1]["testing"]
        numbers = (epoch + 1, args.epochs, seen["accuracy"], seen["f1"], seen["overconfidence"])
        print("epoch %d/%d  accuracy %.3f  F1 %.3f  overconfidence %+.3f" % numbers, flush=True)

    print("rows: what it was, columns: what it was taken for")
    for row in history[-1]["testing"]["confusion"]:
        print(" ".join("%5d" % count for count in row), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"steps": run.steps, "history": history, "weights": digest(model)}, file)


if __name__ == "__main__":
    main()
