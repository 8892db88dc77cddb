"""Saves behind the training: what is written is the state at the call, failures are told, forks and exits are safe."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gpusched.checkpoint import Run
from gpusched.checkpoint.disk import contents, files, host_memory
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.disk.writer import Writer
from gpusched.checkpoint.errors import CheckpointError

ROOT = Path(__file__).parents[2]


def tree(step, weight=None, **values):
    parts = {} if weight is None else {"model": {"weight": weight}}
    return {"shared": {"position": {"steps": step}, "parts": parts}, "own": {"values": values}}


class Gate:
    """Holds writes until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.open = threading.Event(), threading.Event()
        write = contents.write_halves

        def held(*arguments):
            self.reached.set()
            assert self.open.wait(60)
            return write(*arguments)

        monkeypatch.setattr(contents, "write_halves", held)


def test_the_state_at_the_call_is_what_is_written_whatever_happens_to_it_meanwhile(tmp_path, monkeypatch):
    gate, vault = Gate(monkeypatch), Vault(str(tmp_path), 3, print)
    weight, seen = torch.ones(1000), [1, 2]
    vault.save_behind(tree(7, weight, seen=seen), {"epoch": 2})
    assert gate.reached.wait(60)
    weight.zero_()
    seen.append(3)
    assert vault.finished() is None
    gate.open.set()
    outcome = vault.settle()
    assert outcome.checkpoint.name == "step-7" and outcome.error is None and outcome.checkpoint.epoch == 2
    assert vault.latest == outcome.checkpoint and vault.finished() is None
    _, loaded, _ = Vault(str(tmp_path), 3, print).load()
    assert loaded["shared"]["parts"]["model"]["weight"].sum() == 1000 and loaded["own"]["values"] == {"seen": [1, 2]}


def test_a_second_save_waits_for_the_first_and_both_are_reported(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    for step in (1, 2, 3):
        assert vault.save_behind(tree(step, torch.full((1000,), float(step))), {}) >= 0
    vault.save(tree(4), {})
    assert [vault.finished().checkpoint.name for _ in range(3)] == ["step-1", "step-2", "step-3"]
    assert vault.settle() is None
    for found in files.newest_good(str(tmp_path)):
        assert found.good


def test_older_ones_are_deleted_in_the_thread(tmp_path):
    vault = Vault(str(tmp_path), 2, print)
    for step in range(5):
        vault.save_behind(tree(step), {})
    vault.settle()
    assert [found.step for found in files.list_checkpoints(str(tmp_path))] == [3, 4]


def test_tidying_up_leaves_a_checkpoint_alone_that_is_being_written(tmp_path, monkeypatch):
    vault = Vault(str(tmp_path), 1, print)
    vault.save(tree(1), {})
    gate = Gate(monkeypatch)
    vault.save_behind(tree(2), {})
    assert gate.reached.wait(60)
    files.prune(str(tmp_path), 1)
    gate.open.set()
    assert vault.settle().checkpoint.good


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), MemoryError(), KeyboardInterrupt()])
def test_whatever_happens_in_the_thread_is_an_outcome(tmp_path, monkeypatch, error):
    vault = Vault(str(tmp_path), 3, print)
    vault.save(tree(1), {})

    def fail(*arguments):
        raise error

    monkeypatch.setattr(contents, "write_halves", fail)
    vault.save_behind(tree(2), {})
    outcome = vault.settle()
    assert outcome.checkpoint is None and outcome.error is error
    assert "the last good one is step-1" in vault.why_not(outcome.error)
    assert sorted(os.listdir(tmp_path)) == ["step-1"]


def test_what_cannot_be_stored_is_told_at_the_call(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    with pytest.raises(CheckpointError, match="values/what"):
        vault.save_behind(tree(1, what=object()), {})
    assert vault.settle() is None


def test_where_memory_is_short_the_training_stands_still_instead_and_that_is_told_once(tmp_path, monkeypatch):
    told = []
    vault = Vault(str(tmp_path), 3, told.append)
    monkeypatch.setattr(host_memory, "available", lambda: 1000)
    for step in (1, 2):
        vault.save_behind(tree(step, torch.ones(1000)), {})
        assert vault.finished().checkpoint.step == step
    assert len(told) == 1 and "cannot save behind the training" in told[0] and "MiB" in told[0]


def test_where_no_thread_can_be_had_the_write_happens_at_once(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    vault = Vault(str(tmp_path), 3, print)
    vault.save_behind(tree(1, torch.ones(10)), {})
    assert vault.finished().checkpoint.good


def test_a_forked_child_neither_publishes_nor_reports_what_its_parent_writes(tmp_path, monkeypatch):
    gate, vault = Gate(monkeypatch), Vault(str(tmp_path), 3, print)
    vault.save_behind(tree(1, torch.ones(1000)), {})
    assert gate.reached.wait(60)
    pid = os.fork()
    if pid == 0:
        gate.open.set()
        os._exit(0 if vault.settle() is None and vault.finished() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not files.list_checkpoints(str(tmp_path))
    gate.open.set()
    assert vault.settle().checkpoint.good


def test_a_forked_child_may_save_into_a_directory_of_its_own(tmp_path, monkeypatch):
    vault = Vault(str(tmp_path / "parent"), 3, print)
    vault.save_behind(tree(1, torch.ones(1000)), {})
    pid = os.fork()
    if pid == 0:
        mine = Vault(str(tmp_path / "child"), 3, print)
        mine.save_behind(tree(2, torch.ones(1000)), {})
        os._exit(0 if mine.settle().checkpoint.good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert vault.settle().checkpoint.good
    assert [found.step for found in files.list_checkpoints(str(tmp_path / "child"), True) if found.good] == [2]


ENDING = """
import sys, time
sys.path.insert(0, {root!r})
from gpusched.checkpoint import leave
from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.disk.vault import Vault
write = contents.write_halves
def slowly(*arguments):
    time.sleep(0.3)
    return write(*arguments)
contents.write_halves = slowly
vault = Vault({directory!r}, 3, print)
vault.save_behind({{"shared": {{"position": {{"steps": 5}}}}, "own": {{}}}}, {{}})
assert "torch" not in sys.modules
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("raise ValueError('a bug')", 1), ("sys.exit(3)", 3), ("leave.leave(85)", 85)]
)
def test_a_write_is_finished_before_the_interpreter_ends_and_without_torch(tmp_path, end, code):
    program = ENDING.format(root=str(ROOT), directory=str(tmp_path / "c"), end=end)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    (found,) = files.list_checkpoints(str(tmp_path / "c"), checksums=True)
    assert found.good and not list((tmp_path / "c").glob(".tmp-*")), done.stderr
    assert done.returncode == code


def test_a_writer_waits_in_no_thread_but_others():
    writer, order = Writer(), []

    def work(notes):
        writer.wait()  # by the thread itself: nothing to wait for
        order.append("done")

    writer.begin(work, 0.25)
    writer.wait()
    assert order == ["done"]
    outcome = writer.finished()
    assert outcome.stall == 0.25 and outcome.seconds <= time.monotonic()


def test_what_a_write_behind_the_training_has_to_say_is_said_once(tmp_path):
    run = Run(directory=tmp_path / "checkpoints", every_steps=2, every_seconds=None)
    for _ in run.epochs(1):
        for number in run.batches(range(4)):
            if number == 1:
                shutil.rmtree(tmp_path / "checkpoints")
            run.step()
    assert len([line for line in run.report if "had vanished and was made again" in line]) == 1, run.report
