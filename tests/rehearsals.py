"""Rehearsals of small scripts for tests, in processes forked from the torch zygote (see torch_zygote.py)."""

import textwrap

from gpusched.rehearse.plan import Plan
from gpusched.rehearse.rehearsal import rehearse

PROLOGUE = """
import json
import sys

import numpy
import torch
from torch import nn

from gpusched.checkpoint import Run

torch.set_num_threads(1)
torch.manual_seed(1)
numpy.random.seed(1)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)
loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)


def learn(points, labels):
    loss = nn.functional.cross_entropy(model(points), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
"""


# Taking torch apart at the end would cost more than all the rest.
EPILOGUE = """
sys.stdout.flush()
__import__("os")._exit(0)
"""


class Forked:
    """A process of the zygote, as gpusched.rehearse.process.Child."""

    def __init__(self, zygote, pid):
        self.zygote, self.pid = zygote, pid

    def poll(self):
        return self.zygote.codes.get(self.pid)


class Stage:
    """Where the rehearsals of one test take place."""

    def __init__(self, zygote, folder):
        self.zygote, self.folder, self.told = zygote, folder, []

    def start(self, argv, env, directory, log):
        return Forked(self.zygote, self.zygote.start(argv[1:], env, log))

    def script(self, body, prologue=PROLOGUE):
        path = self.folder / "train.py"
        path.write_text(prologue + textwrap.dedent(body) + EPILOGUE)
        return path

    def rehearse(self, body, *arguments, preemptions=1, **options):
        """The outcome for a script with this body after the prologue."""
        runs = self.folder / "runs"
        runs.mkdir(exist_ok=True)
        command = ("python", str(self.script(body)), *arguments)
        plan = Plan(command=command, folder=str(runs), preemptions=preemptions, start=self.start, **options)
        return rehearse(plan, self.told.append)
