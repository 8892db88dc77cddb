#!/usr/bin/env python3
"""Bagging by the library torchensemble, as far as it can be made resumable: a whole member at a time.

    python ensemble_library.py --members 5
    gpusched submit ensemble_library.py --members 5 --task regression

Its fit() owns the training loop, so nothing can be saved inside it. But an ensemble of one member is an ensemble too:
here every member is fitted by a fit() of its own, from a seed of its own, and moved into the whole. A stop waits for
the member in work; the resumed run starts with the next one and ends with the same bits. Two more things to know: its
own save and load fail with torch 2.6 and newer, so the checkpoint is ours; and it has no stacking: see ensemble.py.
"""

import argparse
import contextlib
import json
import os
import sys

try:
    import torch
except ImportError:
    sys.exit("ensemble_library.py needs PyTorch: pip install 'gpusched[torch]'")
try:
    import torchensemble
except ImportError:
    sys.exit("ensemble_library.py needs torchensemble: pip install --no-deps torchensemble, and scikit-learn")

from ensemble import make_data, make_net, score

from gpusched.checkpoint import Run, digest


def parse_arguments():
    parser = argparse.ArgumentParser(description="Bagging by torchensemble, resumable after every member.")
    parser.add_argument("--task", choices=["classification", "regression"], default="classification")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of every member")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write the scores and the digest of the weights to this file")
    return parser.parse_args()


def bagging(args, net, members):
    kind = "BaggingRegressor" if args.task == "regression" else "BaggingClassifier"
    return getattr(torchensemble, kind)(estimator=net, n_estimators=members, cuda=False)


def fit_one(args, member, loader):
    """One trained member. Everything it draws follows from its own seed, so it is the same in any attempt."""
    torch.manual_seed(1000 * args.seed + member)
    single = bagging(args, make_net(args.task, member), 1)
    single.set_optimizer("AdamW", lr=args.lr)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints at every epoch
        single.fit(loader, epochs=args.epochs, save_model=False)
    return single.estimators_[0]


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    x, y, x_test, y_test = make_data(args.task, args.seed)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), args.batch, shuffle=True)
    whole = bagging(args, make_net(args.task, 0), args.members)
    whole.estimators_.extend(make_net(args.task, member) for member in range(args.members))

    run = Run(model=whole)
    scores = run.values.setdefault("scores", [])
    for _ in run.epochs(1):
        for member in run.batches(range(args.members)):
            whole.estimators_[member].load_state_dict(fit_one(args, member, loader).state_dict())
            so_far = bagging(args, make_net(args.task, 0), member + 1)
            so_far.estimators_.extend(whole.estimators_[: member + 1])
            scores.append(score(args.task, so_far.predict(x_test), y_test))
            print("%d of %d members: %.3f of 1" % (member + 1, args.members, scores[-1]), flush=True)
            run.step(score=scores[-1])

    print("weights sha256 %s" % digest(whole)[:16], flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"steps": run.steps, "scores": scores, "weights": digest(whole)}, file)


if __name__ == "__main__":
    main()
