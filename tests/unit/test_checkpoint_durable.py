"""The order of things on the disk: every file flushed, then the name, then the name flushed, and only then `saved`."""

import os

import pytest
import torch

from gpusched import rundir
from gpusched.checkpoint import Run, leave


@pytest.fixture
def journal(monkeypatch, tmp_path):
    """What reached the disk, in its order: ("flush" | "rename", path), by every thread."""
    events, fsync, rename, replace = [], os.fsync, os.rename, os.replace

    def flushed(fd):
        fsync(fd)
        events.append(("flush", os.readlink(f"/proc/self/fd/{fd}")))

    def renamed(old, new):
        rename(old, new)
        events.append(("rename", os.fspath(new)))

    def replaced(old, new):
        replace(old, new)
        events.append(("rename", os.fspath(new)))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    for name, value in ((rundir.ENV_JOB_DIR, "job"), (rundir.ENV_CHECKPOINT_DIR, "checkpoints")):
        monkeypatch.setenv(name, str(tmp_path / value))
    (tmp_path / "job").mkdir()
    return events


def train(folder, ask):
    model = torch.nn.Linear(3, 3)
    run = Run(model, torch.optim.AdamW(model.parameters()), every_seconds=None)
    for _ in run.epochs(1):
        for number in run.batches(range(4)):
            if number == 1:
                rundir.write_json(str(folder / "job" / rundir.REQUEST), {"ask": ask, "seq": 1}, durable=False)
            run.step()


@pytest.mark.parametrize("ask", ["stop", "save"])
def test_saved_is_said_when_the_checkpoint_is_durable_and_not_before(ask, journal, tmp_path, monkeypatch):
    class Left(BaseException):
        pass

    def leaving(code):
        raise Left

    monkeypatch.setattr(leave, "leave", leaving)
    if ask == "stop":
        with pytest.raises(Left):
            train(tmp_path, ask)
    else:  # written behind the training
        train(tmp_path, ask)
    place = tmp_path / "checkpoints" / "step-2"
    published = journal.index(("rename", str(place)))
    before = {os.path.basename(path) for what, path in journal[:published] if what == "flush"}
    assert {path.name for path in place.iterdir()} <= {name.split(".tmp-")[0] for name in before}
    assert any(name.startswith(".tmp-") for name in before), "the draft's own directory must be flushed, too"
    name_flushed = journal.index(("flush", str(place.parent)), published)
    said = journal.index(("rename", str(tmp_path / "job" / rundir.SAVED)))
    assert published < name_flushed < said
