"""Optimizers of every kind go on as if they had not been interrupted, and changed options of a script are told."""

import copy

import pytest
import torch
from torch import nn

from gpusched.checkpoint import CheckpointError, digest
from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.state.registry import Registry


def told_nothing(sentence):
    raise AssertionError(sentence)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def step(model, optimizer, number):
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))

    def closure():
        optimizer.zero_grad()
        loss = model(points).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


def through_the_disk(folder, tree):
    whole = {"shared": {"parts": tree}, "own": {}}
    contents.write_shared(str(folder), whole)
    contents.write_own(str(folder), 0, whole)
    return contents.read(str(folder))[0]["shared"]["parts"]


def sparse_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(10, 3, sparse=True))


class Shared(torch.optim.SGD):
    """Keeps something that belongs to no parameter."""

    def step(self, closure=None):
        kept = self.state.setdefault("of all", {"count": 0})
        kept["count"] += 1
        self.param_groups[0]["lr"] = 0.1 / kept["count"]
        return super().step(closure)


KINDS = {
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3, max_iter=4, line_search_fn="strong_wolfe"),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "a tensor as learning rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "centered RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "state of its own": lambda p: Shared(p, lr=0.1),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9, nesterov=True, maximize=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_goes_on_as_if_it_had_not_been_interrupted(kind, tmp_path):
    def script(seed):
        model = make_model(seed)
        optimizer = KINDS[kind](model.parameters())
        return {"model": model, "optimizer": optimizer}, Registry({"model": model, "optimizer": optimizer})

    (straight, _), (first, before), (second, after) = script(0), script(0), script(1)
    for number in range(6):
        step(number=number, **straight)
    for number in range(3):
        step(number=number, **first)
    after.restore(through_the_disk(tmp_path, before.capture()), told_nothing)
    for number in range(3, 6):
        step(number=number, **second)
    assert digest(second["model"]) == digest(straight["model"])
    assert digest(second["optimizer"]) == digest(straight["optimizer"])


def test_sparse_gradients_go_on_as_if_they_had_not_been_interrupted(tmp_path):
    def script(seed):
        model = sparse_model(seed)
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
        return model, optimizer, Registry({"model": model, "optimizer": optimizer})

    def train(model, optimizer, number):
        optimizer.zero_grad()
        model(torch.tensor([number, 2 * number])).sum().backward()
        optimizer.step()

    straight, first, second = script(0), script(0), script(1)
    for number in range(4):
        train(*straight[:2], number)
    for number in range(2):
        train(*first[:2], number)
    second[2].restore(through_the_disk(tmp_path, first[2].capture()), told_nothing)
    for number in range(2, 4):
        train(*second[:2], number)
    assert digest(second[0]) == digest(straight[0]) and digest(second[1]) == digest(straight[1])


def options(model, **more):
    return torch.optim.AdamW(model.parameters(), **more)


def resumed(first, second, during=lambda objects: None):
    """Restore into the second script what the first one has after `during`; gives what was told."""
    told = []
    source, target = Registry(first), Registry(second)
    during(first)
    target.restore(copy.deepcopy(source.capture()), told.append)
    return told


def test_an_option_that_the_script_has_changed_is_told_and_the_checkpoints_goes_on():
    one, other = make_model(), make_model(1)
    first = {"model": one, "optimizer": options(one, weight_decay=0.01)}
    second = {"model": other, "optimizer": options(other, weight_decay=0.1)}
    (sentence,) = resumed(first, second)
    assert "begins with weight_decay=0.1 in optimizer, and began with 0.01" in sentence
    assert second["optimizer"].param_groups[0]["weight_decay"] == 0.01


def test_a_learning_rate_that_the_training_has_changed_is_no_change_of_the_script():
    def warm(objects):
        objects["optimizer"].param_groups[0]["lr"] = 0.7
        for _ in range(3):
            objects["optimizer"].step()
            objects["scheduler"].step()

    def script(lr):
        model = make_model()
        optimizer = options(model, lr=lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=10)
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    assert resumed(script(0.1), script(0.1), warm) == []
    (sentence,) = resumed(script(0.1), script(0.2), warm)
    assert sentence.startswith("the script now begins with lr=")


def test_a_changed_option_is_told_at_every_later_resume_too():
    objects = [{"model": one, "optimizer": options(one, eps=eps)} for eps in (1e-8, 1e-6, 1e-6)
               for one in [make_model()]]  # fmt: skip
    first, second, third = (Registry(one) for one in objects)
    told = []
    second.restore(copy.deepcopy(first.capture()), told.append)
    third.restore(copy.deepcopy(second.capture()), told.append)
    assert len(told) == 2 and all("eps=1e-06" in sentence for sentence in told)


def test_a_group_that_was_added_during_the_run_is_there_again_with_its_state():
    def script(seed):
        model = make_model(seed)
        return {"model": model, "optimizer": torch.optim.AdamW(model[2].parameters(), lr=0.1)}

    def unfreeze(objects):
        objects["optimizer"].add_param_group({"params": list(objects["model"][0].parameters()), "lr": 0.003})
        step(objects["model"], objects["optimizer"], 0)

    first, second = script(0), script(1)
    (sentence,) = resumed(first, second, unfreeze)
    assert "got the group of 0.weight during the run" in sentence
    assert [group["lr"] for group in second["optimizer"].param_groups] == [0.1, 0.003]
    assert digest(second["optimizer"]) == digest(first["optimizer"])


def test_names_that_an_optimizer_keeps_itself_do_not_get_in_the_way():
    def script(seed, wrap):
        model = wrap(make_model(seed))
        head = [(name, one) for name, one in model.named_parameters() if "2." in name]
        return {"model": model, "optimizer": torch.optim.AdamW(head, lr=0.1)}

    def unfreeze(objects):
        rest = [(name, one) for name, one in objects["model"].named_parameters() if "2." not in name]
        objects["optimizer"].add_param_group({"params": rest})

    first, second = script(0, nn.DataParallel), script(1, lambda model: model)
    (sentence,) = resumed(first, second, unfreeze)
    assert "got the group of 0.weight" in sentence
    assert second["optimizer"].param_groups[1]["param_names"] == ["0.weight", "0.bias"]


def test_a_parameter_that_the_script_has_moved_to_another_group_is_refused():
    one, other = make_model(), make_model(1)
    first = {"model": one, "optimizer": torch.optim.AdamW(one.parameters())}
    second = {"model": other, "optimizer": torch.optim.AdamW(other[2].parameters())}
    with pytest.raises(CheckpointError, match="in other groups than the checkpoint"):
        resumed(first, second)


def test_optimizers_whose_state_lies_on_other_ranks_are_refused():
    where = {"__module__": "torch.distributed.optim.zero_redundancy_optimizer"}  # importing it warns of TorchScript
    kind = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), where)
    with pytest.raises(CheckpointError, match="ZeroRedundancyOptimizer"):
        Registry({"optimizer": kind(make_model().parameters())})
