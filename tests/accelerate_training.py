"""A training script with accelerate, for test_frameworks_resume.py: dropout, augmentation in loader workers, gradient
accumulation whose window the epoch's end cuts short, a prepared scheduler, an object registered with accelerate.
"""

import argparse
import json
import random
import warnings

import numpy
import torch
from accelerate import Accelerator
from torch import nn

from gpusched.checkpoint import digest
from gpusched.checkpoint.frameworks.accelerate import AcceleratedRun

warnings.filterwarnings("ignore")


def make_sample(index):
    noise = random.random() + numpy.random.rand() + float(torch.rand(()))
    return index, torch.sin(torch.arange(8.0) * (index + 1)) * (1 + 0.1 * noise), (index * 7) % 3


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 44

    def __getitem__(self, index):
        return make_sample(index)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return map(make_sample, range(44))


class Average:
    """Registered with accelerate, as its users do."""

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def state_dict(self):
        return vars(self).copy()

    def load_state_dict(self, state):
        vars(self).update(state)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--iterable", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.accumulate)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=60)
    data = Stream() if args.iterable else Augmented()
    order = None if args.iterable else True
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=order, num_workers=args.workers)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    average = Average()
    accelerator.register_for_checkpointing(average)
    run = AcceleratedRun(accelerator, model)
    seen, synced = run.values.setdefault("seen", []), run.values.setdefault("synced", [])
    for epoch in run.epochs(3):
        model.train()
        for index, points, labels in run.batches(loader):
            seen.append([epoch, index.tolist()])
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(points), labels) * (1 + 0.01 * random.random())
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            synced.append(accelerator.sync_gradients)
            average.sum, average.count = average.sum + loss.item(), average.count + 1
            run.step(loss=loss.item())
    result = {name: digest(tree) for name, tree in run.state().items()}
    result.update(seen=seen, synced=synced, average=vars(average), steps=run.steps, told=run.report)
    result["following"] = [random.random(), float(torch.rand(())), numpy.random.rand()]
    with open(args.out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
