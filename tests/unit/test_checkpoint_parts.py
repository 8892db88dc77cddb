"""How the state of each kind of object is taken and put back, and what is refused."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn

from gpusched.checkpoint import CheckpointError, digest
from gpusched.checkpoint.state.registry import Registry


def told_nothing(sentence):
    raise AssertionError(sentence)


def pair(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3, bias=bias), nn.BatchNorm1d(3))


def trained(model, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4, dtype=next(model.parameters()).dtype)).float().square().sum().backward()
        optimizer.step()


def move(source, target, told=told_nothing):
    """From one script's objects into another's."""
    trees = copy.deepcopy(Registry(source).capture())
    Registry(target).restore(trees, told)


def test_weights_buffers_and_moments_come_back():
    model, other = pair(0), pair(1)
    optimizer, another = torch.optim.AdamW(model.parameters(), lr=0.1), torch.optim.AdamW(other.parameters(), lr=0.2)
    trained(model, optimizer)
    told = []
    move({"model": model, "optimizer": optimizer}, {"model": other, "optimizer": another}, told.append)
    assert digest(other) == digest(model)
    assert digest(another) == digest(optimizer)
    assert len(told) == 1 and "begins with lr=0.2 in optimizer, and began with 0.1" in told[0]


def test_moments_follow_the_name_of_their_parameter_when_the_order_has_changed():
    model, other = pair(0), pair(1)
    optimizer = torch.optim.Adam(model.parameters())
    backwards = torch.optim.Adam(reversed(list(other.parameters())))
    trained(model, optimizer)
    move({"model": model, "optimizer": optimizer}, {"model": other, "optimizer": backwards})
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], backwards.state[theirs]["exp_avg"])


def test_groups_in_another_order_keep_their_own_options():
    def grouped(model, turn):
        groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.2, "weight_decay": 0.5}]
        return torch.optim.AdamW(groups[::turn])

    model, other = pair(0), pair(1)
    optimizer, turned = grouped(model, 1), grouped(other, -1)
    source = Registry({"model": model, "optimizer": optimizer})
    optimizer.param_groups[1]["lr"] = 0.3
    Registry({"model": other, "optimizer": turned}).restore(copy.deepcopy(source.capture()), told_nothing)
    assert [group["lr"] for group in turned.param_groups] == [0.3, 0.1]
    assert [group["weight_decay"] for group in turned.param_groups] == [0.5, 0.01]


def test_single_precision_moments_of_half_precision_weights_keep_their_bits():
    model, other = pair(0).bfloat16(), pair(1).bfloat16()
    optimizer, another = torch.optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    trained(model, optimizer)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-6
    move({"model": model, "optimizer": optimizer}, {"model": other, "optimizer": another})
    moments = [state["exp_avg"] for state in another.state.values()]
    assert all(moment.dtype == torch.float32 for moment in moments)
    assert digest({"m": moments}) == digest({"m": [state["exp_avg"] for state in optimizer.state.values()]})


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_load_into_plain_ones_and_back(wrap):
    plain, wrapped, third = pair(0), wrap(pair(1)), pair(2)
    move({"model": plain}, {"model": wrapped})
    move({"model": wrapped}, {"model": third})
    assert digest(plain) == digest(wrapped) == digest(third)
    assert set(Registry({"model": wrapped}).capture()["model"]) == set(plain.state_dict())


def test_a_module_of_the_scripts_own_that_is_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert "module.weight" in Registry({"model": model}).capture()["model"]


def test_several_models_and_optimizers_are_told_apart():
    def gan(seed):
        models = {"generator": pair(seed), "critic": pair(seed + 1)}
        optimizers = {name: torch.optim.Adam(model.parameters()) for name, model in models.items()}
        return {"model": models, "optimizer": optimizers}

    one, other = gan(0), gan(5)
    for name in one["model"]:
        trained(one["model"][name], one["optimizer"][name])
    move(one, other)
    assert all(digest(one[role][name]) == digest(other[role][name]) for role in one for name in one[role])


@pytest.mark.parametrize(
    "other, words",
    [
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)), "0.bias"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), "2.weight"),
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), r"shape of 0.weight is \(3, 4\) .* and \(3, 5\)"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double(), "dtype of 0.weight is torch.float32"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_naming_the_first_mismatch(other, words):
    before = digest(other)
    with pytest.raises(CheckpointError, match=words):
        move({"model": pair()}, {"model": other})
    assert digest(other) == before


def test_an_optimizer_with_other_groups_is_refused():
    model, other = pair(0), pair(1)
    optimizer = torch.optim.Adam(model.parameters())
    split = torch.optim.Adam([{"params": [one]} for one in other.parameters()])
    with pytest.raises(CheckpointError, match="other groups"):
        move({"model": model, "optimizer": optimizer}, {"model": other, "optimizer": split})


def test_a_missing_optimizer_is_refused_and_a_missing_metric_is_told():
    model, told = pair(), []
    with pytest.raises(CheckpointError, match="has optimizer, which the script does not register"):
        move({"model": model, "optimizer": torch.optim.SGD(model.parameters())}, {"model": model})
    move({"model": model}, {"model": model, "extra": {"history": []}}, told.append)
    assert "registers history" in told[0].replace("extra.", "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: random.Random(3),
        lambda: numpy.random.default_rng(3),
        lambda: numpy.random.Generator(numpy.random.MT19937(3)),
        lambda: numpy.random.RandomState(3),
        lambda: torch.Generator().manual_seed(3),
    ],
)
def test_every_kind_of_generator_goes_on_where_it_was(make):
    def draw(generator):
        torchs = isinstance(generator, torch.Generator)
        return float(torch.rand((), generator=generator)) if torchs else generator.random()

    generator, fresh = make(), make()
    draw(generator)
    move({"generators": [generator]}, {"generators": [fresh]})
    assert draw(generator) == draw(fresh)


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(16, dtype=torch.uint8),  # a CUDA generator's
        random.Random(1).getstate(),
        numpy.random.default_rng(1).bit_generator.state,
    ],
)
def test_a_generator_of_another_kind_or_device_stays_as_it_is_and_is_told(state):
    live, told = torch.Generator().manual_seed(3), []
    before = live.get_state()
    Registry({"generators": {"noise": live}}).restore({"generators.noise": state}, told.append)
    assert torch.equal(live.get_state(), before)
    assert len(told) == 1 and told[0].startswith("generators.noise was saved from another kind of generator")


def test_an_object_that_refuses_its_state_is_named():
    class Counter:
        def __init__(self, **state):
            self.state = state

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = {"seen": state["seen"]}

    with pytest.raises(CheckpointError, match=r"extra.counter refuses .* its Counter raised KeyError: 'seen'"):
        move({"extra": {"counter": Counter(total=1)}}, {"extra": {"counter": Counter(seen=1)}})


def test_lists_and_dictionaries_are_filled_in_place():
    history, best = [], {}
    move({"extra": {"h": [1, 2], "b": {"x": 3}}}, {"extra": {"h": history, "b": best}})
    assert history == [1, 2] and best == {"x": 3}


def test_an_object_without_state_is_refused_at_once():
    with pytest.raises(CheckpointError, match=r"extra.thing is a object without state_dict"):
        Registry({"extra": {"thing": object()}})
    with pytest.raises(CheckpointError, match="extra is a list"):
        Registry({"extra": [1]})


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
        ),
    ],
)
def test_a_scheduler_goes_on_with_the_right_learning_rate(make, tmp_path):
    from gpusched.checkpoint.disk import contents

    def script(seed):
        model = pair(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer, "scheduler": make(optimizer)}

    def rates(one, count):
        result = []
        for _ in range(count):
            one["optimizer"].step()
            one["scheduler"].step()
            result.append(one["optimizer"].param_groups[0]["lr"])
        return result

    one, other = script(0), script(1)
    rates(one, 4)
    tree = {"shared": {"parts": Registry(one).capture()}, "own": {}}
    contents.write_shared(str(tmp_path), tree)
    contents.write_own(str(tmp_path), 0, tree)
    Registry(other).restore(contents.read(str(tmp_path))[0]["shared"]["parts"], told_nothing)
    assert rates(one, 8) == rates(other, 8)


def test_a_disabled_scaler_has_nothing_to_restore():
    move({"scaler": torch.amp.GradScaler("cpu", enabled=False)}, {"scaler": torch.amp.GradScaler("cpu", enabled=False)})


def test_torchmetrics_states_come_back_with_their_update_counts():
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

    def fresh():
        return torchmetrics.MetricCollection(
            {
                "accuracy": torchmetrics.classification.MulticlassAccuracy(3),
                "f1": torchmetrics.classification.MulticlassF1Score(3),
                "psnr": torchmetrics.MetricCollection([torchmetrics.MeanMetric()]),
            }
        )

    one, other, labels = fresh(), fresh(), torch.tensor([0, 1, 2, 1])
    one["accuracy"].update(torch.tensor([0, 1, 1, 1]), labels)
    one["f1"].update(torch.tensor([0, 1, 1, 1]), labels)
    move({"metrics": one}, {"metrics": other})
    assert other["accuracy"]._update_count == 1
    for name in ("accuracy", "f1"):
        one[name].update(labels, labels)
        other[name].update(labels, labels)
        assert torch.equal(one[name].compute(), other[name].compute())


def test_a_digest_tells_every_difference_in_names_shapes_types_and_bits():
    base = {"a": torch.tensor([1.0, 2.0])}
    same = digest({"a": torch.tensor([1.0, 2.0])})
    assert digest(base) == same
    for other in (
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 2.0]).double()},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0000002])},
        {"a": torch.tensor([1.0, 2.0]), "n": 1},
    ):
        assert digest(other) != same
    assert digest({"zero": torch.tensor([0.0])}) != digest({"zero": torch.tensor([-0.0])})
