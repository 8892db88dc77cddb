#!/usr/bin/env python3
"""Combine what the members of an ensemble predict: the job that depends on the array of ensemble.py.

    gpusched submit --array 0-4 ensemble.py --method stacking
    gpusched submit --after @ ensemble_combine.py --method stacking

Bagging is an average. Stacking trains a second-level model on the out-of-fold predictions: it learns whom to believe
when. That is a resumable loop like any other.
"""

import argparse
import json
import os
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("ensemble_combine.py needs PyTorch: pip install 'gpusched[torch]'")

from ensemble import file_of, loss_for, make_data, predict, score

from gpusched.checkpoint import Run, digest


def parse_arguments():
    parser = argparse.ArgumentParser(description="Combine the members that ensemble.py has trained.")
    parser.add_argument("--method", choices=["bagging", "stacking"], default="bagging")
    parser.add_argument("--task", choices=["classification", "regression"], default="classification")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--folder", default="ensemble.parts", help="where the members have left their predictions")
    parser.add_argument("--epochs", type=int, default=20, help="of the second-level model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0, help="the same as the members'")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write the scores and the digest of the predictions to this file")
    return parser.parse_args()


def second_level(args, opinions, y):
    """Learn from predictions for samples that their makers had not seen; predict the test data from theirs."""
    inputs = torch.cat([one["unseen"] for one in opinions], dim=1)
    model = nn.Linear(inputs.shape[1], opinions[0]["test"].shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, y), args.batch, shuffle=True)
    run = Run(model=model, optimizer=optimizer)
    for _ in run.epochs(args.epochs):
        model.train()
        for seen, wanted in run.batches(loader):
            loss = loss_for(args.task)(model(seen), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss.item())
    return predict(args.task, model, torch.cat([one["test"] for one in opinions], dim=1))


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    _, y, _, y_test = make_data(args.task, args.seed)
    files = [file_of(args, member) for member in range(args.members)]
    missing = [path for path in files if not os.path.exists(path)]
    if missing:
        sys.exit("ensemble_combine.py: %s is missing. Train the members first (ensemble.py)." % missing[0])
    opinions = [torch.load(path, weights_only=True) for path in files]

    if args.method == "stacking":
        together = second_level(args, opinions, y)
    else:
        together = torch.stack([one["test"] for one in opinions]).mean(0)
    singles = [score(args.task, one["test"], y_test) for one in opinions]
    print("members: %s of 1" % "  ".join("%.3f" % one for one in singles))
    print("%s: %.3f of 1" % (args.method, score(args.task, together, y_test)), flush=True)
    if args.out:
        result = {"members": singles, "together": score(args.task, together, y_test)}
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(dict(result, predictions=digest({"together": together})), file)


if __name__ == "__main__":
    main()
