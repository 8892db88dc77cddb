"""What agreeing on a stop costs per step, with 2, 3 and 4 gloo ranks: the same loop with and without it, in turns.

    python tests/bench/bench_ranks.py [--steps 100] [--rounds 20]

The loop is a small DDP training, so its steps are as quick as those of several processes can be. For comparison: an
all-reduce at every step that is waited for, which is what agreeing costs if it is not hidden.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from gpusched.checkpoint.ranks import group


class Loop:
    """A training loop; `inside` adds up the seconds that were spent in what is measured."""

    def __init__(self):
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        self.model, self.data = nn.parallel.DistributedDataParallel(net), torch.randn(16, 32)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.inside = 0.0

    def run(self, count, each):
        """Seconds per step, the mean of so many."""
        began = time.perf_counter()
        for step in range(count):
            self.model(self.data).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            before = time.perf_counter()
            each(step)
            self.inside += time.perf_counter() - before
        return (time.perf_counter() - began) / count


def one_rank(rank, size, meeting, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=size)
    ranks, loop = group.find(), Loop()
    done = {"agreeing": 0}

    def agree(_):
        done["agreeing"] += 1
        ranks.agree(0, done["agreeing"], "step")

    ways = {
        "neither": lambda step: None,
        "agreeing": agree,
        "waited for": lambda step: dist.all_reduce(torch.zeros(1, dtype=torch.int64), dist.ReduceOp.MAX),
    }
    means, inside = {name: [] for name in ways}, dict.fromkeys(ways, 0.0)
    for each in ways.values():
        loop.run(args.steps, each)  # warm up
    for _ in range(args.rounds):
        for name, each in ways.items():
            loop.inside = 0.0
            means[name].append(loop.run(args.steps, each))
            inside[name] += loop.inside / args.steps / args.rounds
    ranks.close()
    if rank == 0:
        tell(size, means, inside)
    dist.barrier()


def tell(size, means, inside):
    base = statistics.median(means["neither"])
    for name, found in means.items():
        step, ratio = statistics.median(found), statistics.median(found) / base
        text = f"{size} ranks  {name:<11} step {step * 1e6:6.0f} us  ratio {ratio:.3f}"
        print(f"{text}  in the call itself {inside[name] * 1e6:6.1f} us", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    for size in (2, 3, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(one_rank, (size, os.path.join(folder, "meeting"), args), nprocs=size)


if __name__ == "__main__":
    main()
