"""Schedulers of every kind give the learning rates, and the momenta, of a run that was not interrupted."""

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.state.registry import Registry


class Warmup:
    """A callable with a state of its own, which LambdaLR stores."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return self.calls / 20


def warmed(optimizer):
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    hold = lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [warm, hold, lr_scheduler.CosineAnnealingLR(optimizer, 6)], [2, 4])


SCHEDULERS = {
    "on a plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20, three_phase=True),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, mode="exp_range", gamma=0.9),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.2, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "one after the other": warmed,
    "with a state of its own": lambda o: lr_scheduler.LambdaLR(o, Warmup()),
    "multiplied": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "restarting": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 12, 2.0),
    "averaged weights": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=5),
}


class Script:
    def __init__(self, kind):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.02}]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        self.scheduler = SCHEDULERS[kind](self.optimizer)
        self.registry = Registry({"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler})

    def run(self, numbers):
        found = []
        for number in numbers:
            self.optimizer.step()
            loss = [(1.0, 0.9, 0.95, 0.96)[number % 4]] if "Plateau" in type(self.scheduler).__name__ else []
            self.scheduler.step(*loss)
            found.append([(group["lr"], group["momentum"]) for group in self.optimizer.param_groups])
        return found


def told_nothing(sentence):
    raise AssertionError(sentence)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_scheduler_goes_on_as_if_it_had_not_been_interrupted(kind, stop, tmp_path):
    straight, first, second = (Script(kind) for _ in range(3))
    expected = straight.run(range(11))
    before = first.run(range(stop))
    tree = {"shared": {"parts": first.registry.capture()}, "own": {}}
    contents.write_shared(str(tmp_path), tree)
    contents.write_own(str(tmp_path), 0, tree)
    second.registry.restore(contents.read(str(tmp_path))[0]["shared"]["parts"], told_nothing)
    assert before + second.run(range(stop, 11)) == expected
