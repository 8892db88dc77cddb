#!/usr/bin/env python3
"""Train a model that no device holds in full (FSDP2): preempted at any step it ends with the same bits, and it may go
on with another number of devices, or with one.

    python fsdp.py                                   # one process
    torchrun --nproc-per-node 3 fsdp.py              # every parameter and moment in three pieces
    gpusched submit --gpus 4 torchrun --nproc-per-node 4 fsdp.py

Each process saves the pieces that it holds. On the same number of processes a resumed run continues bit for bit. On
another number it gets exactly the same values; from there on sums over processes round differently, as they would
have from the start. (Dropout is drawn by each process for its own samples, so it also falls differently.)
"""

import argparse
import json
import math
import os
import sys

try:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
except ImportError:
    sys.exit("fsdp.py needs PyTorch 2.6 or newer: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

RINGS = 4


class Rings(torch.utils.data.Dataset):
    """Points of rings around the origin, one class per ring; each look at a point shakes and turns it."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % RINGS
        self.radius = self.labels + 0.5 + 0.3 * (torch.rand(count, generator=generator) * 2 - 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        angle = 2 * math.pi * torch.rand(())
        point = self.radius[index] * torch.stack([angle.cos(), angle.sin()]) + 0.02 * torch.randn(2)
        return point, self.labels[index]


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a sharded model that can be preempted at any step.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=48, help="samples in one step of all processes together")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, for each process")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="write loss curve, accuracy and digests to this file")
    return parser.parse_args()


def connect(device):
    """Meet the other processes that torchrun has started; a process on its own is a group of one."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group(backend)
    else:
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def make_model(args, device, size):
    """The same first weights on every rank, of which each then keeps its pieces."""
    model = nn.Sequential(nn.Linear(2, args.width), *[Block(args.width, args.dropout) for _ in range(args.blocks)])
    model.append(nn.Linear(args.width, RINGS))
    model.to(device)
    mesh = init_device_mesh(device.type, (size,))
    for block in model:
        if isinstance(block, Block):
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def accuracy(model, data, device):
    """On all ranks: a forward pass of a sharded model needs every one of them."""
    model.eval()
    torch.manual_seed(0)  # the data draws random numbers
    with torch.no_grad():
        points, labels = zip(*(data[index] for index in range(len(data))))
        found = model(torch.stack(points).to(device)).argmax(1).cpu()
    return float((found == torch.stack(labels)).float().mean())


def main():
    args = parse_arguments()
    torch.set_num_threads(1)  # on a CPU, another number of threads rounds differently
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    rank, size = connect(device)
    if args.batch % size:
        sys.exit("--batch %d cannot be shared evenly by %d processes" % (args.batch, size))

    torch.manual_seed(args.seed)
    model = make_model(args, device, size)
    torch.manual_seed(args.seed + rank)  # each rank drops out other neurons
    data = Rings(args.samples, args.seed)
    sampler = torch.utils.data.DistributedSampler(data, seed=args.seed, drop_last=True)
    loader = torch.utils.data.DataLoader(
        data, args.batch // size, sampler=sampler, drop_last=True, num_workers=args.workers
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler, seed=args.seed)
    curve = run.values.setdefault("curve", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for points, labels in run.batches(loader):
            loss = nn.functional.cross_entropy(model(points.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            mean = loss.detach() / size
            torch.distributed.all_reduce(mean)
            curve.append(mean.item())
            run.step(loss=curve[-1])
        if rank == 0:
            print("epoch %d/%d  step %d  loss %.4f" % (epoch + 1, args.epochs, run.steps, curve[-1]), flush=True)

    result = {"steps": run.steps, "curve": curve, "weights": digest(model), "moments": digest(optimizer)}
    result["accuracy"] = accuracy(model, Rings(1000, args.seed + 1), device)
    if rank == 0:
        print("accuracy %.3f  weights sha256 %s" % (result["accuracy"], result["weights"][:16]), flush=True)
    if rank == 0 and args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
