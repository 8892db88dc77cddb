"""DDP stopped and resumed within one process group, with and without the cure of its bucket trap (ranks/ddp.py).

Writes, for each case (or those named on its command line), the digests of the weights of three runs: undisturbed,
resumed without the cure, resumed with it. The resume happens in these processes: a new DDP around a new model, given
the state of the old one.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gpusched.checkpoint import digest
from gpusched.checkpoint.ranks.ddp import Buckets

# name: (width, steps, stop after this step, options of DDP, what is special)
CASES = {
    "plain": (24, 5, 2, {}, ""),
    "after the first step": (24, 4, 1, {}, ""),
    "5 MB in several buckets": (1100, 3, 1, {"bucket_cap_mb": 1}, ""),
    "gradient_as_bucket_view": (24, 5, 2, {"gradient_as_bucket_view": True}, ""),
    "static_graph": (24, 5, 3, {"static_graph": True}, ""),
    "static_graph after the first step": (24, 5, 1, {"static_graph": True}, ""),
    "static_graph, a parameter unused": (24, 5, 2, {"static_graph": True}, "unused"),
    "find_unused_parameters": (24, 5, 2, {"find_unused_parameters": True}, "unused"),
    "no_sync": (24, 5, 2, {}, "no_sync"),
    "two models, one with sparse gradients": (24, 5, 2, {}, "two"),
    "before the first step": (24, 3, 0, {}, ""),
}


class Net(nn.Module):
    """Its last layer is registered first, so that gradients become ready in another order than DDP guesses."""

    def __init__(self, width, unused):
        super().__init__()
        self.last, self.first = nn.Linear(width, 4), nn.Linear(8, width)
        self.norm, self.middle, self.drop = nn.BatchNorm1d(width), nn.Linear(width, width), nn.Dropout(0.1)
        self.unused = nn.Linear(width, width) if unused else None

    def forward(self, x):
        return self.last(self.drop(self.middle(self.norm(self.first(x).relu())).relu()))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.words = nn.Linear(6, 4), nn.Embedding(30, 6, sparse=True)

    def forward(self, x):
        return self.last(self.words((x.abs() * 9).long().clamp(max=29)))


class Trial:
    """Models in DDP with an optimizer, built the same way every time."""

    def __init__(self, width, options, special, told):
        torch.manual_seed(0)
        models = [Net(width, special == "unused")] + ([Words()] if special == "two" else [])
        self.models = [DistributedDataParallel(model, **options) for model in models]
        self.optimizer = torch.optim.SGD([one for model in self.models for one in model.parameters()], lr=0.1)
        self.buckets = Buckets({str(i): model for i, model in enumerate(self.models)}, told.append)
        self.no_sync = special == "no_sync"

    def state(self):
        weights = [{name: one.clone() for name, one in model.module.state_dict().items()} for model in self.models]
        return json.loads(json.dumps(self.buckets.capture())), weights, torch.get_rng_state()

    def load(self, state, cured):
        rng, before = torch.get_rng_state(), digest([model.module.state_dict() for model in self.models])
        if cured:
            self.buckets.restore(state[0])
            assert self.buckets.capture() == state[0]
        assert torch.equal(torch.get_rng_state(), rng), "the generator was touched"
        assert digest([model.module.state_dict() for model in self.models]) == before, "a buffer was touched"
        assert all(one.grad is None for model in self.models for one in model.parameters()), "gradients were left"
        for model, weights in zip(self.models, state[1], strict=True):
            model.module.load_state_dict(weights)
        torch.set_rng_state(state[2])

    def step(self, data, target):
        if self.no_sync:
            with self.models[0].no_sync():
                self.loss(data, target).backward()
        self.loss(data, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, data, target):
        found = [model(data) for model in self.models]
        return sum((one.view(16, -1, 4).mean(1) - target).square().mean() for one in found)


def run(case, stop, cured, told):
    width, steps, _, options, special = case
    data = torch.randn(steps, 16, 12, generator=torch.Generator().manual_seed(50 + dist.get_rank()))
    trial = Trial(width, options, special, told)
    trial.buckets.watch()
    for step in range(steps):
        if step == stop:
            state = trial.state()
            trial = Trial(width, options, special, told)
            trial.load(state, cured)
            trial.buckets.watch()
        trial.step(data[step, :, :8], data[step, :, 8:])
    return digest([model.module.state_dict() for model in trial.models])


def main():
    dist.init_process_group("gloo")
    found = {}
    for name in sys.argv[2:] or CASES:
        case, told = CASES[name], []
        runs = ((None, False), (case[2], False), (case[2], True))
        found[name] = [run(case, stop, cured, told) for stop, cured in runs] + [told]
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
