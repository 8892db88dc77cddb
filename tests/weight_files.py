"""A small model and files of weights for it, for tests of load_weights."""

import pytest
import torch
from checkpoint_trees import write_safetensors
from torch import nn

from gpusched.checkpoint import CheckpointError, load_weights


def net(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def named(model):
    return {"body": model[0], "norm": model[1], "head": model[2]}


class Net(nn.Module):
    def __init__(self, classes=3, seed=0):
        super().__init__()
        for name, part in named(net(classes, seed)).items():
            setattr(self, name, part)


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def write(path, value):
    if str(path).endswith(".safetensors"):
        write_safetensors(path, value)
    else:
        torch.save(value, path)
    return str(path)


def error_of(*arguments, **options):
    with pytest.raises(CheckpointError) as caught:
        load_weights(*arguments, **options)
    return str(caught.value)
