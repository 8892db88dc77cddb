"""What a script has not registered is found and named; what is no loss is not."""

import random
import sys

import pytest

from gpusched.checkpoint.state.unregistered import Unregistered, objects

torch = pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
numpy = pytest.importorskip("numpy")


def find(frame, registered, ignore=()):
    """What would be told, generators that were not drawn from included."""
    watch = Unregistered(frame, registered, ignore)
    watch._states = [None] * len(watch._states)
    assert len(watch.sentences()) == len(objects(frame, registered, ignore))
    return watch.sentences()


def test_every_kind_of_thing_with_state_is_named_by_its_variable():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    average = torch.optim.swa_utils.AveragedModel(model)
    shuffler, noise, dice = random.Random(1), numpy.random.default_rng(2), torch.Generator()
    told = find(sys._getframe(), [model])
    named = {sentence.split(" ")[0] for sentence in told}
    assert named == {"optimizer", "scheduler", "plateau", "scaler", "average", "shuffler", "noise", "dice"}
    assert all("add it to Run(...)" in sentence for sentence in told)
    assert find(sys._getframe(), [model, optimizer, scheduler, average], [plateau, scaler, shuffler, noise, dice]) == []


def test_attributes_and_members_of_small_containers_are_looked_into():
    class Trainer:
        def __init__(self):
            self.dice = random.Random(1)

    trainer, more = Trainer(), {"second": random.Random(2)}
    named = {sentence.split(" ")[0] for sentence in find(sys._getframe(), [])}
    assert named == {"trainer.dice", "more['second']"}
    assert trainer and more


def test_what_belongs_to_a_registered_object_or_to_a_loader_is_no_loss():
    order = torch.Generator()
    data = torch.utils.data.TensorDataset(torch.arange(4))
    data.noise = random.Random(1)
    loader = torch.utils.data.DataLoader(data, shuffle=True, generator=order)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, first], [2])
    assert find(sys._getframe(), [model, optimizer, scheduler]) == []
    assert loader


def test_the_metrics_of_a_registered_collection_are_saved_with_it():
    torchmetrics = pytest.importorskip("torchmetrics")
    mean = torchmetrics.MeanMetric()
    both = torchmetrics.MetricCollection({"mean": mean})
    assert find(sys._getframe(), [both]) == []
    assert [sentence.split(" ")[0] for sentence in find(sys._getframe(), [], [both])] == ["mean"]


def test_a_generator_counts_once_it_was_drawn_from():
    noise, dice, still = numpy.random.default_rng(2), random.Random(3), torch.Generator()
    watch = Unregistered(sys._getframe(), [])
    assert watch.sentences() == []
    noise.random()
    dice.random()
    assert {sentence.split(" ")[0] for sentence in watch.sentences()} == {"noise", "dice"}
    assert still
