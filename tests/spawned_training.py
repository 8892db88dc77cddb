"""A DDP training that starts its own ranks, as torch.multiprocessing.spawn does, for test_ranks_spawned.py.

Nothing in the environment names the ranks; they meet in a file. Forked, so that torch is imported once.
"""

import argparse
import json
import os
import tempfile
import time

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from gpusched.checkpoint import Run, digest


def train(rank, args, meeting):
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=args.ranks)
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.1), nn.Linear(40, 1)))
    torch.manual_seed(10 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = Run(model=model, optimizer=optimizer, seed=5, every_seconds=None)
    samples = torch.utils.data.TensorDataset(torch.randn(96, 6, generator=torch.Generator().manual_seed(3)))
    sampler = torch.utils.data.distributed.DistributedSampler(samples)
    loader = torch.utils.data.DataLoader(samples, batch_size=4, sampler=sampler)
    for _ in run.epochs(6):
        for (batch,) in run.batches(loader):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            time.sleep(args.pause)
            run.step()
    drawn = run.ranks.gather([float(torch.rand(())), run.steps])
    if rank == 0:
        with open(args.out, "w") as file:
            json.dump({"weights": digest(model), "optimizer": digest(optimizer), "drawn": drawn}, file)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds in a step, so that ranks agree within a few")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        multiprocessing.start_processes(train, (args, meeting), nprocs=args.ranks, start_method="fork")


if __name__ == "__main__":
    main()
