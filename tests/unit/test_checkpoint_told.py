"""What a Run tells of its own accord: things with state that nobody registered, and surroundings that have changed."""

import pytest
import torch

from gpusched.checkpoint import CheckpointError, Run


def train(folder, ignore=(), **options):
    """A script that holds an optimizer and two generators, of which it draws from one, and registers none of them."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    noise, unused = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    things = {"optimizer": optimizer, "noise": noise, "unused": unused}
    run = Run(model, directory=folder, every_seconds=None, ignore=[things[name] for name in ignore], **options)
    for _ in run.epochs(1):
        for _ in run.batches(range(2)):
            optimizer.zero_grad()
            model(torch.randn(1, 2, generator=noise)).sum().backward()
            optimizer.step()
            run.step()
    return run.report


def named(report):
    return sorted({line.split(" ")[0] for line in report if "is not registered, so it starts afresh" in line})


def test_what_a_script_holds_and_has_not_registered_is_named_once(tmp_path):
    report = train(tmp_path)
    assert named(report) == ["noise", "optimizer"] and len(report) == 2


def test_what_is_to_be_ignored_is_not_named(tmp_path):
    assert named(train(tmp_path, ignore=("noise", "optimizer"))) == []


@pytest.fixture
def other_threads(tmp_path):
    """A checkpoint that was made with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    train(tmp_path)
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def test_who_insists_on_the_same_bits_is_refused_other_surroundings(other_threads):
    with pytest.raises(CheckpointError, match=r"must resume exactly .* torch's thread count was 2 and is 1"):
        train(other_threads, environment="exact")


@pytest.mark.parametrize(("environment", "times"), [("warn", 1), ("any", 0)])
def test_others_are_told_if_they_want_to_know(other_threads, environment, times):
    report = train(other_threads, environment=environment)
    assert len([line for line in report if "thread count was 2 and is 1: the run continues" in line]) == times
    assert any(line.startswith("resumed from step-2") for line in report)


def test_a_word_for_the_surroundings_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="Choose from exact, warn and any"):
        Run(directory=tmp_path, environment="strict")
