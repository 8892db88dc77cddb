#!/usr/bin/env python3
"""Train on several devices with DistributedDataParallel; it can be preempted at any step, and resumes bit for bit.

    torchrun --nproc-per-node 3 ddp.py                        # three processes, on GPUs if there are enough
    python ddp.py                                             # one process, no torchrun
    gpusched submit --gpus 3 torchrun --nproc-per-node 3 ddp.py

An ordinary DDP script with a DistributedSampler: run.batches() gives every process its slice of each global batch, and
the global batches are the same on any number of processes. All ranks stop at the same step and save one checkpoint; on
three or more of them DDP's own layout of its gradients comes back as well, without which the bits would differ. On
another number of processes the run goes on with the same global batches and other roundings (elastic.py has the same
bits there).
"""

import argparse
import json
import os
import sys
import time

try:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
except ImportError:
    sys.exit("ddp.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest


class Waves(torch.utils.data.Dataset):
    """Noisy sine waves of four frequencies and any phase; each look at one adds fresh noise."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 4
        phase = 6.3 * torch.rand(count, 1, generator=generator)
        self.waves = torch.sin(torch.linspace(0, 6.3, 32) * (1 + self.labels[:, None]) + phase)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.waves[index] + 0.5 * torch.randn(32), self.labels[index]


class Classifier(nn.Module):
    """Two convolutions with BatchNorm and dropout, and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 4)  # used last: DDP lays out its gradients anew after the first step
        self.body = nn.Sequential(
            nn.Conv1d(1, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv1d(width, width, 5, stride=2), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, waves):
        return self.head(self.body(waves[:, None]).mean(2))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train with DistributedDataParallel.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1920)
    parser.add_argument("--batch", type=int, default=48, help="samples of all processes together in one step")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, for each process")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--slow-ms", type=float, default=0.0, help="wait this long in every step, to watch it")
    parser.add_argument("--out", help="write loss curve, accuracy and the digests of weights and state to this file")
    return parser.parse_args()


def connect(wanted):
    """Meet the other processes, if torchrun has started some. Gives (rank, number of ranks, device)."""
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available() and torch.cuda.device_count() >= size)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
        return dist.get_rank(), size, device
    return 0, 1, device


def mean_of_ranks(value, size):
    if size > 1:
        dist.all_reduce(value)
    return float(value) / size


@torch.no_grad()
def accuracy(model, seed, device):
    model.eval()
    waves = Waves(1000, seed)
    return float((model(waves.waves.to(device)).argmax(1).cpu() == waves.labels).float().mean())


def main():
    args = parse_arguments()
    torch.set_num_threads(1)  # on a CPU, another number of threads rounds differently
    torch.manual_seed(args.seed)
    rank, size, device = connect(args.device)
    if args.batch % size:
        sys.exit("--batch %d cannot be shared evenly by %d processes" % (args.batch, size))

    model = Classifier(args.width).to(device)
    if size > 1:
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    torch.manual_seed(args.seed + 1000 * rank)  # each rank drops out other units
    data = Waves(args.samples, args.seed)
    sampler = torch.utils.data.DistributedSampler(data, drop_last=True) if size > 1 else None
    loader = torch.utils.data.DataLoader(
        data, args.batch // size, shuffle=sampler is None, sampler=sampler, drop_last=True, num_workers=args.workers
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * (args.samples // args.batch))

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler, seed=args.seed)
    curve = run.values.setdefault("curve", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for waves, labels in run.batches(loader):  # this process's slice of each global batch
            loss = nn.functional.cross_entropy(model(waves.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            curve.append(mean_of_ranks(loss.detach(), size))
            time.sleep(args.slow_ms / 1000)
            run.step(loss=curve[-1])
        if rank == 0:
            print("epoch %d/%d  step %d  loss %.4f" % (epoch + 1, args.epochs, run.steps, curve[-1]), flush=True)

    result = {"steps": run.steps, "curve": curve, "weights": digest(model), "state": digest(run)}
    result["accuracy"] = accuracy(model.module if size > 1 else model, args.seed + 1, device)
    if rank == 0:
        print("accuracy %.3f  weights sha256 %s" % (result["accuracy"], result["weights"][:16]), flush=True)
    if rank == 0 and args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
