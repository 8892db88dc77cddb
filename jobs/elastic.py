#!/usr/bin/env python3
"""Train on however many devices are free today: the same bits on 1, 2, 3 or 6 processes, and from one to the other.

    python elastic.py                                # one process
    torchrun --nproc-per-node 3 elastic.py           # three of them, with the same weights at the end
    gpusched submit --gpus 2 torchrun --nproc-per-node 2 elastic.py

The work is divided among six *logical ranks*, always. A process computes one of them or several, one after the other,
each with its own slice of the data, its own random numbers and its own BatchNorm statistics, and the gradients are
added in the order of the logical ranks. So a run may be stopped on 6 devices and go on with 2, then 1, then 3. It costs
more traffic than DistributedDataParallel (six gradients instead of one); where that hurts, use jobs/ddp.py.
"""

import argparse
import json
import os
import random
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("elastic.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest


class Checkerboard(torch.utils.data.Dataset):
    """Points on a board of 4 x 4 fields, dark or light; each look at a point moves and turns it a little."""

    def __init__(self, count, seed):
        self.points = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
        fields = (self.points * 4).floor().long()
        self.labels = (fields[:, 0] + fields[:, 1]) % 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        x, y = (self.points[index] + 0.005 * torch.randn(2)).tolist()
        if random.random() < 0.5:  # the board looks the same from its other corner
            x, y = 1 - y, 1 - x
        waves = torch.tensor([x, y]).outer(torch.tensor([3.0, 6.0, 12.0])).flatten()
        return torch.cat([waves.sin(), waves.cos()]), self.labels[index]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train with the same bits on any number of processes.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--logical", type=int, default=6, help="logical ranks; a multiple of the number of processes")
    parser.add_argument("--batch", type=int, default=16, help="samples of one logical rank in one step")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, for each process")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="write loss curve, accuracy and the digest of the weights to this file")
    return parser.parse_args()


def connect(device):
    """Meet the other processes, if torchrun has started some. Gives this one's rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return torch.distributed.get_rank()
    return 0


def accuracy(model, data, device):
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # the data draws random numbers
        torch.manual_seed(0)
        random.seed(0)
        inputs, labels = zip(*(data[index] for index in range(len(data))))
        found = model(torch.stack(inputs).to(device)).argmax(1).cpu()
    return float((found == torch.stack(labels)).float().mean())


def main():
    args = parse_arguments()
    torch.set_num_threads(1)  # on a CPU, another number of threads rounds differently
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    rank = connect(device)

    model = nn.Sequential(
        nn.Linear(12, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.05),
        nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 2),
    ).to(device)  # fmt: skip
    data = Checkerboard(args.samples, args.seed)
    loader = torch.utils.data.DataLoader(data, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler, logical=args.logical)
    curve = run.values.setdefault("curve", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for shares in run.batches(loader):  # one batch for each logical rank of this process
            optimizer.zero_grad()
            losses = []
            for inputs, labels in shares:
                losses.append(nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device)))
                losses[-1].backward()
            optimizer.step()  # with the mean of all logical ranks' gradients
            scheduler.step()
            curve.append(shares.mean(losses))
            run.step(loss=curve[-1])
        if rank == 0:
            print("epoch %d/%d  step %d  loss %.4f" % (epoch + 1, args.epochs, run.steps, curve[-1]), flush=True)

    result = {"steps": run.steps, "curve": curve, "weights": digest(model), "state": digest(run)}
    result["accuracy"] = accuracy(model, Checkerboard(1000, args.seed + 1), device)
    if rank == 0:
        print("accuracy %.3f  weights sha256 %s" % (result["accuracy"], result["weights"][:16]), flush=True)
    if rank == 0 and args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
