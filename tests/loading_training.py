"""A training script that writes down what it was given, for test_loading_resume.py: by one rank or several.

    loading_training.py OUT KIND BATCH [EXTRA_SAMPLES]

KIND is sharded (a DistributedSampler over a data set), stream (a torchdata StatefulDataLoader with workers, over a
stream that knows its place), replay (a stream that does not) or listed (a plain list).
"""

import json
import os
import random
import sys

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, get_worker_info

from gpusched.checkpoint import Run

OUT, KIND, BATCH = sys.argv[1], sys.argv[2], int(sys.argv[3])
EXTRA = int(sys.argv[4]) if len(sys.argv) > 4 else 0
RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Noisy(Dataset):
    def __len__(self):
        return 64 + EXTRA

    def __getitem__(self, index):
        return index, random.random(), float(torch.rand(()))


class Stream(IterableDataset):
    place = 0

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while self.place < 64:
            self.place += 1
            if self.place % step == first:
                yield self.place, random.random(), float(torch.rand(()))
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Forgetful(IterableDataset):
    def __iter__(self):
        return ((index, random.random(), float(torch.rand(()))) for index in range(64))


def make_loader():
    if KIND == "sharded":
        data = Noisy()
        return DataLoader(data, BATCH, sampler=DistributedSampler(data, SIZE, RANK))
    if KIND == "stream":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Stream(), BATCH, num_workers=2)
    return DataLoader(Forgetful(), BATCH, num_workers=1)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(RANK)  # ranks often have seeds of their own
    if SIZE > 1:
        torch.distributed.init_process_group("gloo")
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    loader = make_loader()
    run = Run(model, optimizer, environment=os.environ.get("POLICY", "warn"))
    seen = run.values.setdefault("seen", [])
    for epoch in run.epochs(2):
        for batch in run.batches(loader):
            rows = list(zip(*[column.tolist() for column in batch], strict=True))
            parts = [rows]
            if SIZE > 1:
                parts = [None] * SIZE
                torch.distributed.all_gather_object(parts, rows)
            seen.append([epoch, [list(row) for part in parts for row in part]])
            run.step()
    if RANK == 0:
        with open(OUT, "w") as file:
            json.dump(seen, file)


if __name__ == "__main__":
    main()
