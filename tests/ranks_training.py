"""A small DDP training with trouble on demand, for test_ranks.py; its ranks are connected as torchrun would do it.

Every option that takes RANK makes something happen on that rank alone.
"""

import argparse
import json
import os
import resource
import signal

import torch
import torch.distributed as dist
from torch import nn

from gpusched.checkpoint import Run, digest
from gpusched.checkpoint.disk import contents

STEPS = 24


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--term", type=int, metavar="RANK", help="a SIGTERM to itself, in step 5")
    parser.add_argument("--die-saving", type=int, metavar="RANK", help="kill -9 in the middle of its second save")
    parser.add_argument("--full", type=int, metavar="RANK", help="no file may grow, from step 3 on")
    parser.add_argument("--check", type=int, metavar="RANK", help="calls run.check() where the others do not")
    parser.add_argument("--odd", type=int, metavar="RANK", help="its own state cannot be taken from step 3 on")
    parser.add_argument(
        "--micro", action="store_true", help="steps of two micro batches, one of them not reduced"
    )
    parser.add_argument("--every-steps", type=int)
    parser.add_argument("--blocking", action="store_true")
    parser.add_argument("--unconnected", action="store_true")
    parser.add_argument("--out")
    return parser.parse_args()


class Odd:
    """An object of this rank's own, whose state cannot be taken once it is broken."""

    broken = False

    def state_dict(self):
        if self.broken:
            raise ValueError("this counter is broken")
        return {"count": 1}

    def load_state_dict(self, state):
        assert state == {"count": 1}


def trouble(args, rank, step, odd):
    if args.term == rank and step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    if args.full == rank and step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    odd.broken = odd.broken or (args.odd == rank and step == 3)


def die_in_the_second_save():
    write, saves = contents.write_own_half, []

    def written(*arguments):
        saves.append(1)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments)

    contents.write_own_half = written


def train(args, run, model, optimizer, odd):
    rank, data = dist.get_rank(), torch.randn(STEPS, 8, 6, generator=torch.Generator().manual_seed(3))
    for _ in run.epochs(1):
        for step in run.batches(range(STEPS)):
            trouble(args, rank, step, odd)
            if args.micro and step % 2 == 0:
                with model.no_sync():
                    model(data[step] + rank).square().mean().backward()
                run.micro_step()
                continue
            model(data[step] + rank).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if args.check == rank:
                for _ in range(100):
                    run.check()
            run.values["drawn"] = float(torch.rand(()))
            run.step()


def main():
    args = parse()
    if args.unconnected:
        Run(model=nn.Linear(1, 1))
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if args.die_saving == rank:
        die_in_the_second_save()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 40))
    model = nn.parallel.DistributedDataParallel(net)
    torch.manual_seed(10 + rank)
    optimizer, odd = torch.optim.AdamW(model.parameters(), lr=0.01), Odd()
    every = {"every_steps": args.every_steps, "behind": not args.blocking}
    run = Run(model=model, optimizer=optimizer, extra={"odd": odd}, seed=5, **every)
    train(args, run, model, optimizer, odd)
    drawn = run.ranks.gather([run.values["drawn"], float(torch.rand(())), run.steps])
    if rank == 0 and args.out:
        with open(args.out, "w") as file:
            json.dump({"weights": digest(model), "optimizer": digest(optimizer), "drawn": drawn}, file)


if __name__ == "__main__":
    main()
