"""A training script with windows of four micro batches, each of which is a safe point, for test_accumulation.py.

`--zero-first` clears the gradients at the beginning of a window instead of at its end; both are common.
"""

import argparse
import json

import torch
from torch import nn

from gpusched.checkpoint import Run, digest

parser = argparse.ArgumentParser()
parser.add_argument("--zero-first", action="store_true")
parser.add_argument("--out", required=True)
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 2))
data = torch.utils.data.TensorDataset(torch.randn(88, 6), torch.randint(0, 2, (88,)))
loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
run = Run(model, optimizer)
for _epoch in run.epochs(2):
    model.train()
    for x, y in run.batches(loader):
        if args.zero_first and run.batch % 4 == 0:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).div(4).backward()
        if run.batch % 4 != 3:
            run.micro_step()
            continue
        optimizer.step()
        if not args.zero_first:
            optimizer.zero_grad()
        run.step()
with open(args.out, "w") as file:
    grads = [None if one.grad is None else one.grad.tolist() for one in model.parameters()]
    json.dump({"weights": digest(model), "optimizer": digest(run.state()["optimizer"]), "grads": grads}, file)
