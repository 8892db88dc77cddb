#!/usr/bin/env python3
"""Train the members of an ensemble: bagging and stacking as an array of jobs, boosting as one job.

    gpusched submit --array 0-4 ensemble.py --method stacking
    gpusched submit --after @ ensemble_combine.py --method stacking

    gpusched submit ensemble.py --method boosting --task regression
    python ensemble.py --method bagging && python ensemble_combine.py --method bagging

An array task trains the member of its number (by hand: all members, one after another) and leaves its predictions in
--folder, from where ensemble_combine.py takes them. Each can be stopped anywhere, in any member and any fold.

bagging: each member sees a bootstrap sample of the data, drawn from the seed; their predictions are averaged.
stacking: members of different shapes predict what they have not seen (out of fold), for a second-level model.
boosting: each member fits what those before it left over, so there is no array, and nothing to combine.
"""

import argparse
import json
import math
import os
import sys
import time

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("ensemble.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

TRAINING, TESTING, FOLDS = 600, 400, 3


def make_data(task, seed):
    """Inputs and answers for training, then for testing; answers are classes, or values of mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    count = TRAINING + TESTING
    if task == "regression":  # Friedman's first function: five inputs matter, five do not
        x = torch.rand(count, 10, generator=generator)
        y = 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        y = (y + torch.randn(count, generator=generator)).unsqueeze(1)
        y = (y - y.mean()) / y.std()
    else:  # three spiral arms, blurred
        y = torch.randint(3, (count,), generator=generator)
        radius = torch.rand(count, generator=generator)
        angle = 5 * radius + 2 * math.pi * y / 3 + 0.25 * torch.randn(count, generator=generator)
        x = 3 * torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]


def make_net(task, member, varied=False):
    """A small net; with `varied` the members have different widths and activations."""
    width = [32, 16, 48][member % 3] if varied else 32
    activation = [nn.ReLU, nn.Tanh, nn.GELU][member % 3] if varied else nn.ReLU
    inputs, outputs = (10, 1) if task == "regression" else (2, 3)
    layers = [nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)


def loss_for(task):
    return nn.functional.mse_loss if task == "regression" else nn.functional.cross_entropy


@torch.no_grad()
def predict(task, model, x):
    """Values, or probabilities of the classes."""
    model.eval()
    return model(x) if task == "regression" else model(x).softmax(1)


def score(task, predicted, y):
    """The share of the variance that is explained, or of the answers that are right; 1 is perfect."""
    if task == "regression":
        return 1 - ((predicted - y) ** 2).mean().item() / y.var(correction=0).item()
    return (predicted.argmax(1) == y).float().mean().item()


def rows_of(args, member):
    """The rows of the training data that each net of this member sees: one net, or with stacking one more per fold."""
    generator = torch.Generator().manual_seed(1000 * args.seed + member)
    if args.method == "bagging":
        return [torch.randint(TRAINING, (TRAINING,), generator=generator)]
    everything = torch.arange(TRAINING)
    if args.method == "boosting":
        return [everything]
    return [everything[everything % FOLDS != fold] for fold in range(FOLDS)] + [everything]


def leftover(args, before, x, y):
    """What the members before have left to explain: the negative gradient of the loss at their sum."""
    if not before:
        total = torch.zeros(len(x), 1 if args.task == "regression" else 3)
    else:
        with torch.no_grad():
            total = args.shrink * sum(model.eval()(x) for model in before)
    if args.task == "regression":
        return y - total
    return nn.functional.one_hot(y, 3) - total.softmax(1)


def train(args, members, x, y):
    """Train the nets of these members in one resumable run, one after another. Gives the run and the nets by member."""
    plan = [(member, rows) for member in members for rows in rows_of(args, member)]
    nets = [make_net(args.task, member, args.method == "stacking") for member, _ in plan]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=args.lr) for net in nets]
    run = Run(model=nets, optimizer=optimizers)
    boosting = args.method == "boosting"
    loss_of = nn.functional.mse_loss if boosting else loss_for(args.task)
    curve = run.values.setdefault("curve", [])
    for number, (member, rows) in enumerate(plan):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), args.batch, shuffle=True)
        for _ in run.epochs(args.epochs):  # each net is a phase of the run; one that is done is passed over
            wanted = leftover(args, nets[:number], x, y) if boosting else y
            nets[number].train()
            for (places,) in run.batches(loader):
                loss = loss_of(nets[number](x[places]), wanted[places])
                optimizers[number].zero_grad()
                loss.backward()
                optimizers[number].step()
                curve.append(loss.item())
                time.sleep(args.slow_ms / 1000)
                run.step(loss=curve[-1], member=member)
    return run, {member: [net for net, (owner, _) in zip(nets, plan) if owner == member] for member in members}


def opinion(args, nets, x, x_test):
    """What a member predicts for the test data, and with stacking for the training data it had not seen."""
    found = {"test": predict(args.task, nets[-1], x_test)}
    if args.method == "stacking":
        found["unseen"] = torch.empty(len(x), found["test"].shape[1])
        for fold in range(FOLDS):
            hidden = torch.arange(len(x)) % FOLDS == fold
            found["unseen"][hidden] = predict(args.task, nets[fold], x[hidden])
    return found


def file_of(args, member):
    return os.path.join(args.folder, "%s-%s-%d.pt" % (args.method, args.task, member))


def leave(args, member, found):
    """The member's predictions for ensemble_combine.py, in a file that is whole or not there."""
    os.makedirs(args.folder, exist_ok=True)
    path = file_of(args, member)
    torch.save(found, path + ".tmp")
    os.replace(path + ".tmp", path)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train members of an ensemble; each can be stopped anywhere.")
    parser.add_argument("--method", choices=["bagging", "boosting", "stacking"], default="bagging")
    parser.add_argument("--task", choices=["classification", "regression"], default="classification")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--member", type=int, default=os.environ.get("GPUSCHED_ARRAY_TASK_ID"),
                        help="train only this one (default: the array's task, else all)")  # fmt: skip
    parser.add_argument("--folder", default="ensemble.parts", help="where members leave their predictions")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--shrink", type=float, default=0.5, help="boosting: how much of each member counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--slow-ms", type=float, default=0.0, help="wait this long in every step, to watch it")
    parser.add_argument("--out", help="write scores, loss curve and the digest of the final state to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    x, y, x_test, y_test = make_data(args.task, args.seed)
    single = args.member is not None and args.method != "boosting"
    members = [args.member] if single else list(range(args.members))
    torch.manual_seed(1000 * args.seed + members[0])

    run, nets = train(args, members, x, y)
    if args.method == "boosting":
        total = args.shrink * sum(predict("regression", nets[member][0], x_test) for member in members)
        scores = {"together": score(args.task, total, y_test)}
    else:
        opinions = {member: opinion(args, nets[member], x, x_test) for member in members}
        for member, found in opinions.items():
            leave(args, member, found)
        scores = {"member %d" % member: score(args.task, found["test"], y_test) for member, found in opinions.items()}

    for name, value in scores.items():
        print("%s, %s: %.3f of 1" % (args.method, name, value), flush=True)
    if args.out:
        result = {"steps": run.steps, "scores": scores, "curve": run.values["curve"], "weights": digest(run)}
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
