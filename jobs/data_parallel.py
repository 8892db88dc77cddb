#!/usr/bin/env python3
"""Train with torch.nn.DataParallel: one process, all GPUs it was given, each batch split among them.

    gpusched submit --gpus 2 data_parallel.py --epochs 6
    python data_parallel.py --epochs 6                 # without a GPU it is the plain module

The checkpoint knows nothing of the wrapper's `module.` prefix, so a run saved on four GPUs resumes on one or on none.
What is exact: on one device, and on several without dropout, the same number of devices gives the same bits. With
--dropout on several GPUs the replicas draw their masks in threads that nobody orders, so two runs differ even without a
stop: then a resume continues with the right values, not with the same bits, and the job says so. Another number of
GPUs splits the batch differently and rounds differently. For exactness on many GPUs use DDP (ddp.py).
"""

import argparse
import json
import math
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("data_parallel.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

POINTS, CLASSES = 64, 4


def waves(count, seed):
    """Noisy waves of four shapes, each at a speed and phase of its own: sine, square, triangle, sawtooth."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    speed, phase = torch.rand(2, count, 1, generator=generator)
    turn = (phase + torch.linspace(0, 1, POINTS) * (2 + 2 * speed)) % 1
    shapes = [(2 * math.pi * turn).sin(), (turn - 0.5).sign(), 4 * (turn - 0.5).abs() - 1, 2 * turn - 1]
    clean = torch.stack(shapes)[labels, torch.arange(count)]
    return (clean + 0.3 * torch.randn(count, POINTS, generator=generator)).unsqueeze(1), labels


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train on all GPUs of one process with DataParallel.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64, help="samples of one step, over all GPUs")
    parser.add_argument("--dropout", type=float, default=0.1, help="0: exact on several GPUs too")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write accuracy, loss curve and the digest of the weights to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    gpus = torch.cuda.device_count()
    device = "cuda" if gpus else "cpu"
    exact = gpus < 2 or args.dropout == 0
    promise = "the same bits" if exact else "the same values, not the same bits: dropout on several GPUs is unordered"
    print("%d GPUs: a resumed run continues with %s" % (gpus, promise), flush=True)

    points, labels = waves(args.samples, args.seed)
    unseen = args.samples // 5
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(points[unseen:], labels[unseen:]), args.batch, shuffle=True
    )
    net = nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool1d(4),
        nn.Conv1d(16, 32, 5, padding=2), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Dropout(args.dropout), nn.Linear(32, CLASSES),
    ).to(device)  # fmt: skip
    model = nn.DataParallel(net)  # without a GPU it hands everything on to the plain module
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr * 10, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler)
    curve, scores = run.values.setdefault("curve", []), run.values.setdefault("accuracy", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for inputs, wanted in run.batches(loader):
            loss = nn.functional.cross_entropy(model(inputs.to(device)), wanted.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            curve.append(loss.item())
            run.step(loss=curve[-1])
        model.eval()
        with torch.no_grad():
            right = model(points[:unseen].to(device)).argmax(1).cpu() == labels[:unseen]
        scores.append(right.float().mean().item())
        print("epoch %d/%d  loss %.4f  accuracy %.3f" % (epoch + 1, args.epochs, curve[-1], scores[-1]), flush=True)

    result = {"steps": run.steps, "accuracy": scores, "exact": exact, "curve": curve, "weights": digest(net)}
    print("accuracy %.3f  weights sha256 %s" % (scores[-1], result["weights"][:16]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
