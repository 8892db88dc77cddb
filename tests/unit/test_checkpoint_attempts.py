"""What one attempt leaves for the next: how often runs ended unprepared, and nothing that is not needed."""

import pytest
import torch

from gpusched import rundir
from gpusched.checkpoint import Run, list_checkpoints
from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.mailbox import Mailbox
from gpusched.checkpoint.state import gradients


class Killed(BaseException):
    """The process would have ended here."""


def train(directory, epochs, die_at=None, model=None):
    run = Run(model, directory=directory, every_steps=2, behind=False)
    for _ in run.epochs(epochs):
        for _ in run.batches(range(4)):
            if run.steps == die_at:
                raise Killed
            run.step()


def history(directory):
    tree, _ = contents.read(list_checkpoints(str(directory))[-1].path)
    return tree["shared"]["history"]["unprepared"]


def test_ends_without_a_save_are_counted_over_the_attempts(tmp_path):
    for die_at in (3, 5):
        with pytest.raises(Killed):
            train(tmp_path, 2, die_at)
    train(tmp_path, 2)
    assert history(tmp_path) == 2
    train(tmp_path, 3)  # the end of training was saved: nothing was lost
    assert history(tmp_path) == 2


def test_a_run_that_is_complete_writes_nothing_when_it_is_started_again(tmp_path):
    train(tmp_path, 2)
    before = [found.name for found in list_checkpoints(str(tmp_path))]
    train(tmp_path, 2)
    assert [found.name for found in list_checkpoints(str(tmp_path))] == before


def test_gradients_that_no_window_needs_are_not_stored(tmp_path):
    model = torch.nn.Linear(2, 2)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), directory=tmp_path)
    for _ in run.epochs(1):
        for _ in run.batches(range(2)):
            model(torch.ones(2)).sum().backward()
            run.step()
            assert run.save()
            tree, _ = contents.read(list_checkpoints(str(tmp_path))[-1].path)
            assert tree["own"]["grads"] == {"values": {}, "zero": True}


def test_gradients_that_the_first_lines_of_a_resumed_epoch_leave_are_taken_away():
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    saved = {"values": {"weight": torch.ones(1, 1)}, "zero": []}
    one(torch.ones(1)).backward()
    more = dict(saved, values=dict(saved["values"], gone=torch.ones(1)))
    assert gradients.restore({"": one}, [], more) == ["gone"]
    assert one.weight.grad.tolist() == [[1.0]] and one.bias.grad is None
    assert gradients.restore({"": other}, [], saved) == [] and other.bias.grad is None


def test_a_request_that_was_answered_meanwhile_is_not_handed_out_again(tmp_path):
    """Two threads poll: one may still be reading a request that the other has served."""
    mail = Mailbox(str(tmp_path), 1)
    rundir.write_json(str(tmp_path / rundir.REQUEST), {"ask": "save", "seq": 1}, durable=False)
    request = mail.poll()
    mail.close(request)
    mail._waiting = request  # what the slower thread does last
    assert mail.poll() is None
