"""One run at a time saves into a directory: who is kept out is told by whom, and a dead holder keeps nobody out."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from gpusched.checkpoint.disk import lock as module
from gpusched.checkpoint.disk.lock import Lock
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError


@pytest.fixture
def elsewhere(tmp_path):
    """Starts processes that do something with the lock of a directory and then wait to be killed."""
    pids = []

    def start(action):
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(100)
                kept = action()  # noqa: F841 - whoever drops a lock lets go of it
                os.write(there, b"x")
                while True:
                    time.sleep(10)
            finally:
                os._exit(1)
        os.close(there)
        assert os.read(here, 1) == b"x"
        os.close(here)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def taken(path, patience=0.0):
    lock = Lock(str(path), print)
    lock.take(patience)
    return lock


def test_a_second_process_is_kept_out_and_told_by_whom(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setenv("GPUSCHED_JOB_ID", "17")
    monkeypatch.setenv("GPUSCHED_ATTEMPT", "3")
    pid = elsewhere(lambda: taken(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        taken(tmp_path)
    assert f"process {pid} on " in caught.value.message and "(job 17, attempt 3) since 20" in caught.value.message
    assert "a checkpoint directory of its own" in caught.value.hint


def test_the_end_of_the_holder_is_waited_for(tmp_path, elsewhere):
    told = []
    pid = elsewhere(lambda: taken(tmp_path))
    lock = Lock(str(tmp_path), lambda text: (told.append(text), os.kill(pid, signal.SIGKILL)))
    lock.take(60.0)
    assert lock.held and len(told) == 1 and "waiting for it to end" in told[0]
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_an_orphaned_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path, elsewhere):
    """A data-loader worker lives on for seconds when its trainer is killed; with flock it would hold the lock."""

    def hold():
        lock = taken(tmp_path)
        child = os.fork()
        if child == 0:
            while True:
                time.sleep(10)
        (tmp_path / "child").write_text(str(child))
        return lock

    parent = elsewhere(hold)
    child = int((tmp_path / "child").read_text())
    try:
        os.kill(parent, signal.SIGKILL)
        taken(tmp_path, patience=60.0)
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_runs_of_one_process_exclude_each_other_though_the_system_would_not(tmp_path):
    first = taken(tmp_path)
    first.take()  # harmless
    with pytest.raises(CheckpointError, match="Another Run of this process"):
        taken(tmp_path)
    first.release()
    second = taken(tmp_path)
    with pytest.raises(CheckpointError, match="Another Run of this process"):
        taken(tmp_path)
    del second
    taken(tmp_path)


def test_a_lock_that_was_dropped_behind_our_back_is_taken_again(tmp_path, elsewhere):
    lock = taken(tmp_path)
    (tmp_path / ".lock").read_bytes()  # closing it drops every POSIX lock of this process
    lock.confirm()
    process = multiprocessing.get_context("fork").Process(target=expect_busy, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    (tmp_path / ".lock").read_bytes()
    elsewhere(lambda: taken(tmp_path))
    with pytest.raises(CheckpointError, match="Another run saves into"):
        lock.confirm()


def expect_busy(path):
    with pytest.raises(CheckpointError):
        taken(path)


def test_a_directory_that_was_replaced_is_locked_anew(tmp_path):
    (tmp_path / "c").mkdir()
    lock = taken(tmp_path / "c")
    (tmp_path / "c" / ".lock").unlink()
    lock.confirm()
    assert lock.held and (tmp_path / "c" / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_and_told_about_once(tmp_path, monkeypatch, number):
    def refuse(fd, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "lockf", refuse)
    told = []
    lock = Lock(str(tmp_path), told.append)
    lock.take()
    lock.confirm()
    assert lock.held and not lock.certain and len(told) == 1 and "without locks" in told[0]


def test_the_lock_waits_in_the_vault_and_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    one, other = Vault(str(tmp_path / "c"), 3, print), Vault(str(tmp_path / "c"), 3, print)
    one.claim()
    one.claim()
    with pytest.raises(CheckpointError, match="Another Run"):
        other.claim()
    one.release()
    other.claim()
    other.release()


def test_a_lock_that_could_not_be_had_at_the_start_is_taken_by_the_first_save(tmp_path, monkeypatch):
    def refuse(self, patience=0.0):
        raise OSError(errno.ENOSPC, "no space left on device")

    told, vault = [], Vault(str(tmp_path), 3, lambda text: told.append(text))
    monkeypatch.setattr(Lock, "take", refuse)
    vault.claim()
    assert "NOTHING CAN BE SAVED" in told[0] and "make room there" in told[0]
    monkeypatch.undo()
    vault.save({"shared": {"position": {"steps": 1}}, "own": {}}, {})
    with pytest.raises(CheckpointError, match="Another Run"):
        Vault(str(tmp_path), 3, print).claim()
    vault.release()


def test_the_lock_is_no_checkpoint_and_threads_of_one_process_may_save(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    vault.claim()
    tree = {"shared": {"position": {"steps": 1}}, "own": {}}
    thread = threading.Thread(target=vault.save, args=(tree, {}))
    thread.start()
    thread.join(60)
    assert vault.latest.good
    with open(tmp_path / ".lock", "rb+") as file, pytest.raises(AssertionError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # our own: the system lets us
        raise AssertionError
