"""What a model remembers outside of its tensors, and models that do not fit a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from gpusched.checkpoint import CheckpointError, digest
from gpusched.checkpoint.state.registry import Registry


def told_nothing(sentence):
    raise AssertionError(sentence)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def frozen(model):
    model[0].requires_grad_(False)
    model[1].eval()
    return model


def trainable(model):
    return [name for name, one in model.named_parameters() if one.requires_grad]


def move(first, second, during=lambda model: None, told=told_nothing):
    source, target = Registry({"model": first}), Registry({"model": second})
    during(first)
    target.restore(copy.deepcopy(source.capture()), told)
    return source, target


def test_layers_that_were_unfrozen_midway_stay_so():
    def unfreeze(model):
        model[0].requires_grad_(True)
        model[1].train()

    first, second = frozen(make_model(0)), frozen(make_model(1))
    move(first, second, unfreeze)
    assert trainable(second) == trainable(first) == [name for name, _ in second.named_parameters()]
    assert second[1].training


def test_layers_that_are_frozen_stay_so():
    first, second = frozen(make_model(0)), frozen(make_model(1))
    _, target = move(first, second)
    assert trainable(second) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert not second[1].training and second[0].training
    second.train()  # the first lines of the epoch
    second[0].requires_grad_(True)
    target.restore_small(copy.deepcopy(Registry({"model": first}).capture()))
    assert not second[1].training and not second[0].weight.requires_grad


def test_a_stop_inside_an_evaluation_does_not_leave_the_model_in_that_mode():
    first, second = make_model(0), make_model(1)
    move(first, second, lambda model: model.eval())
    assert all(one.training for one in second.modules())


def test_small_state_taken_before_an_evaluation_holds_the_flags_of_then():
    first, second = frozen(make_model(0)), frozen(make_model(1))
    source, target = Registry({"model": first}), Registry({"model": second})
    boundary = source.capture_small()
    first.requires_grad_(True).eval()
    target.restore(copy.deepcopy(source.capture(boundary)), told_nothing)
    assert trainable(second) == ["1.weight", "1.bias", "2.weight", "2.bias"] and not second[1].training


def test_a_script_that_now_freezes_something_else_is_told():
    told = []
    first, second = frozen(make_model(0)), make_model(1)
    second[2].requires_grad_(False)
    move(first, second, told=told.append)
    assert told == [
        "the script now trains 0.bias of model, which it did not when this run began; the checkpoint's choice goes on"
    ]
    assert trainable(second) == ["1.weight", "1.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_flags_go_by_names_without_wrappers(wrap):
    first, second = wrap(frozen(make_model(0))), frozen(make_model(1))
    move(first, second)
    assert trainable(second) == ["1.weight", "1.bias", "2.weight", "2.bias"] and not second[1].training
    third = wrap(make_model(2))
    move(second, third, told=[].append)
    assert [name.split(".", 1)[1] for name in trainable(third)] == trainable(second)


def test_a_wrapper_inside_a_wrapper_leaves_no_trace_in_the_names():
    inner = make_model()
    nested = torch.compile(nn.DataParallel(nn.Sequential(torch.compile(inner, backend="eager"))), backend="eager")
    assert set(Registry({"model": nested}).capture()["model"]) == {f"0.{name}" for name in inner.state_dict()}


def test_activation_checkpointing_leaves_no_trace_in_the_names_of_moments():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)))
    optimizer = torch.optim.SGD(model.parameters())
    captured = Registry({"model": model, "optimizer": optimizer}).capture()
    assert captured["optimizer"]["groups"][0]["names"] == list(captured["model"]) == ["0.weight", "0.bias"]


def test_an_average_of_a_wrapped_model_loads_into_that_of_a_plain_one():
    average = torch.optim.swa_utils.AveragedModel
    first, second = average(nn.DataParallel(make_model(0))), average(make_model(1))
    first.update_parameters(nn.DataParallel(make_model(3)))
    source, target = Registry({"ema": first}), Registry({"ema": second})
    target.restore(copy.deepcopy(source.capture()), told_nothing)
    assert digest(second) == digest(first) and int(second.n_averaged) == 1


def test_tied_weights_stay_tied():
    def tied(seed):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(seed))
        return model

    first, second = tied(0), tied(1)
    move(first, second)
    assert digest(second) == digest(first) and second[1].weight is second[0].weight


class Counting(nn.Linear):
    """Has a state of its own, of another size every time."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen = []

    def get_extra_state(self):
        return {"seen": torch.tensor(self.seen)}

    def set_extra_state(self, state):
        self.seen = state["seen"].tolist()


def test_extra_state_of_a_module_comes_back():
    first, second = Counting(), Counting()
    move(first, second, lambda model: model.seen.extend([1.0, 2.0]))
    assert second.seen == [1.0, 2.0]


def test_pruning_comes_back_and_a_script_without_it_is_told_what_to_do():
    from torch.nn.utils import prune

    first, second = make_model(0), make_model(1)
    prune.l1_unstructured(first[0], "weight", amount=0.5)
    with pytest.raises(CheckpointError, match=r"has 0.weight, which the checkpoint has not") as refused:
        move(first, second)
    assert "prune.identity()" in str(refused.value)
    prune.identity(second[0], "weight")
    move(first, second)
    points = torch.randn(3, 4)
    assert torch.equal(first.eval()(points), second.eval()(points))


def test_a_model_without_memory_or_shapes_is_refused_with_the_remedy():
    with torch.device("meta"):
        empty = make_model()
    with pytest.raises(CheckpointError, match="on the meta device"):
        move(make_model(), empty)
    with pytest.raises(CheckpointError, match="waits for the first batch"):
        Registry({"model": nn.Sequential(nn.LazyLinear(3))}).capture()


def test_the_older_way_to_shard_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Fake(FullyShardedDataParallel):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(CheckpointError, match="FSDP1"):
        Registry({"model": nn.Sequential(Fake())})
