"""What a run must not keep, lose or trip over: loaders, memory, locks, requests, odd objects of the script's."""

import gc
import weakref

import pytest
import torch

from gpusched import rundir
from gpusched.checkpoint import Run, list_checkpoints
from gpusched.checkpoint.mailbox import Mailbox

POINTS = torch.zeros(24, 4)


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(POINTS), batch_size=4)


def test_loaders_that_the_script_has_dropped_are_dropped(tmp_path):
    alive, kept = [], loader()
    run = Run(directory=tmp_path)
    for _ in run.epochs(4):
        fresh = loader()
        alive.append(weakref.ref(fresh))
        for _ in run.batches(fresh):
            run.step()
        for _ in run.batches(kept):
            pass
        del fresh
    gc.collect()
    assert sum(one() is not None for one in alive) <= 1


def test_the_checkpoint_that_was_loaded_does_not_stay_in_memory(tmp_path):
    for steps in (2, 4):
        run = Run(torch.nn.Linear(2, 2), directory=tmp_path)
        for _ in run.epochs(steps):
            for _ in run.batches(range(1)):
                run.step()
    assert "resumed" in run.report[0] and run._loaded is None


def test_a_run_that_could_not_begin_holds_no_lock(tmp_path):
    model = torch.nn.Linear(2, 2)
    for _ in Run(model, directory=tmp_path).epochs(1):
        pass
    other = Run(torch.nn.Linear(3, 3), directory=tmp_path)
    with pytest.raises(Exception, match="checkpoint"):
        list(other.epochs(1))
    assert list(Run(model, directory=tmp_path).epochs(2)) == [1]


def test_a_stop_that_comes_while_a_save_is_served_is_not_lost(tmp_path):
    def ask(what, seq):
        rundir.write_json(str(tmp_path / rundir.REQUEST), {"ask": what, "seq": seq}, durable=False)

    mail = Mailbox(str(tmp_path), 1)
    ask("save", 1)
    first = mail.poll()
    ask("stop", 2)
    assert mail.poll().stop  # the watchdog looks while the checkpoint is being written
    mail.close(first)
    assert mail.poll() is not None and mail.poll().seq == 2


class Settings(dict):
    __getattr__ = dict.__getitem__  # raises KeyError for what is not there


class Answering:
    def __getattr__(self, name):
        raise RuntimeError(f"somebody asked for {name}")


def test_objects_that_answer_for_any_attribute_are_not_asked(tmp_path):
    settings, answering = Settings(lr=0.1), Answering()
    data = torch.utils.data.TensorDataset(POINTS)
    data.settings, data.answering = settings, answering
    for _ in (run := Run(directory=tmp_path)).epochs(1):
        for _ in run.batches(torch.utils.data.DataLoader(data, 8)):
            run.step()
    assert run.report == []


def test_an_object_whose_state_cannot_be_taken_ends_no_training(tmp_path):
    class Odd:
        broken = False

        def state_dict(self):
            if self.broken:
                raise ValueError("this counter is broken")
            return {}

        def load_state_dict(self, state):
            pass

    odd = Odd()
    run = Run(extra={"odd": odd}, directory=tmp_path, every_seconds=None)
    for _ in run.epochs(2):
        for _ in run.batches(range(2)):
            run.step()
            odd.broken = True
    assert run.steps == 4 and list_checkpoints(str(tmp_path)) == []
    assert "CANNOT SAVE" in run.report[0] and "this counter is broken" in run.report[0]
