"""Finding processes in /proc, and never signalling one that is not meant."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gpusched.supervisor import tree

NESTED = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def nested() -> Iterator[tuple[int, int]]:
    """A marked process with a child whose environment was emptied: (parent, child)."""
    parent = subprocess.Popen([sys.executable, "-c", NESTED], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = int(parent.stdout.readline())
        yield parent.pid, child
        for pid in (child, parent.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def test_descendants_are_found_parents_first(nested: tuple[int, int]) -> None:
    parent, child = nested
    below = [process.pid for process in tree.descendants(os.getpid())]
    assert below.index(parent) < below.index(child)
    assert os.getpid() not in below
    assert [process.pid for process in tree.descendants(parent)] == [child]
    assert tree.is_below(child, os.getpid()) and tree.is_below(child, parent)
    assert not tree.is_below(parent, child) and not tree.is_below(parent, parent)
    assert not tree.is_below(1, os.getpid())


def test_a_reused_pid_is_not_signalled(nested: tuple[int, int]) -> None:
    parent, _ = nested
    found = tree.stat(parent)
    assert found is not None
    impostor = tree.Process(parent, found.started - 1)  # the one that was meant had this pid earlier
    assert not tree.send(impostor, signal.SIGKILL)
    assert tree.send(tree.Process(parent, found.started), 0)


def test_a_process_that_is_gone_is_not_signalled() -> None:
    gone = subprocess.Popen(["sleep", "600"])
    found = tree.stat(gone.pid)
    assert found is not None
    gone.kill()
    gone.wait()
    assert tree.stat(gone.pid) is None
    assert not tree.send(tree.Process(gone.pid, found.started), signal.SIGKILL)


def test_names_with_blanks_and_brackets_do_not_confuse(tmp_path: object) -> None:
    odd = f"{tmp_path}/a) S 1 (b"
    os.symlink("/bin/sleep", odd)
    with subprocess.Popen([odd, "600"]) as process:
        try:
            deadline = time.monotonic() + 30
            while (found := tree.stat(process.pid)) is None or b"S 1" not in name_of(process.pid):
                assert time.monotonic() < deadline
            assert found.parent == os.getpid()
        finally:
            process.kill()


def name_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return file.read()


def test_marks_are_matched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    env = {"PATH": os.environ["PATH"]}
    right = subprocess.Popen(["sleep", "600"], env={**env, "MARK": mark})
    wrong = [
        subprocess.Popen(["sleep", "600"], env={**env, **other})
        for other in ({"MARK": mark + "0"}, {"XMARK": mark}, {"OTHER": f"MARK={mark}"}, {})
    ]
    try:
        assert [process.pid for process in tree.marked("MARK", mark)] == [right.pid]
        assert tree.kill_marked("MARK", mark, 30.0) == 1
        assert right.wait() == -signal.SIGKILL
        assert [process.poll() for process in wrong] == [None] * 4
        assert tree.kill_marked("MARK", mark, 30.0) == 0
    finally:
        for process in [right, *wrong]:
            process.kill()
            process.wait()


def test_a_mark_is_found_although_the_exec_that_brings_it_is_not_over() -> None:
    """Whoever is told of an exec as soon as descriptors are closed by it (Popen) meets an empty environment mostly."""
    for _ in range(40):
        mark = secrets.token_hex(8)
        process = subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], "MARK": mark})
        try:
            assert tree.kill_marked("MARK", mark, 30.0) == 1
        finally:
            process.kill()
            process.wait()


def test_who_really_has_no_environment_is_not_waited_for() -> None:
    with subprocess.Popen(["sleep", "600"], env={}) as process:
        try:
            deadline = time.monotonic() + 30
            while (found := tree.stat(process.pid)) is None or not found.image:
                assert time.monotonic() < deadline
            assert tree._environment(process.pid, float("inf")) == b""
        finally:
            process.kill()
