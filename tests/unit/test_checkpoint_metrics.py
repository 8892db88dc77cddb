"""torchmetrics in a checkpoint: an evaluation that goes on in another process gives what it would have given."""

import copy

import pytest
import torch

from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.state.registry import Registry

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
from torchmetrics import classification, regression, wrappers  # noqa: E402 - after the check that it is there


class Longest(torchmetrics.Metric):
    """A user's own: a state that is a list, and a counter that is no state at all."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("texts", default=[], dist_reduce_fx=None)
        self.batches = 0

    def update(self, predicted, target):
        self.batches += 1
        self.texts.append(predicted.float() + target)

    def compute(self):
        return torch.cat(self.texts).max() + self.batches


def collection():
    return torchmetrics.MetricCollection(
        {
            "accuracy": classification.MulticlassAccuracy(3),
            "precision": classification.MulticlassPrecision(3),
            "confusion": classification.MulticlassConfusionMatrix(3),
        }
    )


MAKERS = {
    "average": torchmetrics.MeanMetric,
    "a state that is a list": torchmetrics.CatMetric,
    "a mean over updates": lambda: torchmetrics.image.PeakSignalNoiseRatio(data_range=3.0, reduction="none", dim=0),
    "curve": lambda: classification.MulticlassAveragePrecision(3, thresholds=None),
    "correlation": regression.PearsonCorrCoef,
    "compute groups": collection,
    "own class": Longest,
    "a composition": lambda: torchmetrics.MeanMetric() + torchmetrics.SumMetric(),
    "extremes": lambda: wrappers.MinMaxMetric(torchmetrics.MeanMetric()),
    "a window": lambda: wrappers.Running(torchmetrics.SumMetric(), window=3),
    "one value per class": lambda: wrappers.ClasswiseWrapper(classification.MulticlassAccuracy(3, average=None)),
    "several tasks": lambda: wrappers.MultitaskWrapper(
        {"a": regression.MeanSquaredError(), "b": regression.MeanAbsoluteError()}
    ),
    "several outputs": lambda: wrappers.MultioutputWrapper(regression.MeanSquaredError(), 2),
    "a tracker": lambda: wrappers.MetricTracker(classification.MulticlassAccuracy(3)),
    "a tracker of a collection": lambda: wrappers.MetricTracker(collection(), maximize=[True, True, True]),
}


def feed(name, metric, number):
    generator = torch.Generator().manual_seed(number)
    labels, scores = torch.randint(3, (8,), generator=generator), torch.rand(8, 3, generator=generator)
    values = torch.rand(8, generator=generator)
    if name in ("average", "a state that is a list", "a composition", "extremes", "a window"):
        metric.update(values)
    elif name == "curve":
        metric.update(scores.softmax(1), labels)
    elif name in ("a mean over updates", "correlation", "own class"):
        metric.update(values, labels.float())
    elif name == "several tasks":
        metric.update({"a": values, "b": values}, {"a": scores[:, 0], "b": scores[:, 1]})
    elif name == "several outputs":
        metric.update(scores[:, :2], scores[:, 1:])
    else:
        metric.update(labels.roll(number), labels)
    if name == "extremes":
        metric.compute()


def flat(value):
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, (list, tuple)) else torch.as_tensor(value).tolist()


def result(name, metric):
    return flat(metric.compute_all() if name.startswith("a tracker") else metric.compute())


def step(name, metric, number):
    if name.startswith("a tracker") and number % 2 == 0:
        metric.increment()
    feed(name, metric, number)


def through_the_disk(folder, tree):
    whole = {"shared": {}, "own": {"parts": tree}}
    contents.write_shared(str(folder), whole)
    contents.write_own(str(folder), 0, whole)
    return contents.read(str(folder))[0]["own"]["parts"]


def nothing_told(sentence):
    raise AssertionError(sentence)


@pytest.mark.filterwarnings("ignore:Metric.*will save all targets:UserWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_a_metric_goes_on_as_if_it_had_not_been_interrupted(name, tmp_path):
    straight, first, second = (MAKERS[name]() for _ in range(3))
    before, after = Registry({"metrics": first}), Registry({"metrics": second})
    for number in range(6):
        step(name, straight, number)
    for number in range(3):
        step(name, first, number)
    after.restore(through_the_disk(tmp_path, before.capture()), nothing_told)
    for number in range(3, 6):
        step(name, second, number)
    assert result(name, second) == result(name, straight)


def test_taking_the_state_does_not_disturb_the_metric():
    straight, watched = collection(), collection()
    part = Registry({"metrics": watched})
    for number in range(4):
        step("collection", straight, number)
        step("collection", watched, number)
        part.capture()
    assert result("collection", watched) == result("collection", straight)


def test_restored_compute_groups_share_their_state_again():
    first, second = collection(), collection()
    source, target = Registry({"metrics": first}), Registry({"metrics": second})
    feed("collection", first, 0)
    target.restore(copy.deepcopy(source.capture()), nothing_told)
    assert second.compute_groups == first.compute_groups
    feed("collection", second, 1)
    assert second["precision"]._update_count == 2


def test_a_metric_that_the_checkpoint_does_not_know_is_told():
    told = []
    first = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric()})
    second = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric(), "sum": torchmetrics.SumMetric()})
    first.update(torch.tensor(2.0))
    Registry({"metrics": second}).restore(copy.deepcopy(Registry({"metrics": first}).capture()), told.append)
    assert float(second["mean"].compute()) == 2.0
    assert len(told) == 1 and "sum (SumMetric)" in told[0]
