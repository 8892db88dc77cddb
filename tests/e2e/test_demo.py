"""The demo as a newcomer plays it, with its daemon killed in the middle of the training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE = 110.0


def _when(path: Path, pattern: str, deadline: float) -> Path:
    while time.monotonic() < deadline:
        found = next(path.glob(pattern), None)
        if found is not None and found.stat().st_size > 0:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} below {path}")


def test_killing_the_daemon_in_the_middle_of_the_demos_training_changes_nothing_but_a_line(tmp_path: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        [sys.executable, "-m", "gpusched", "demo", "--fast"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _when(tmp_path, "gpusched-demo-*/state/jobs/1/1/progress.jsonl", deadline)
        lock = _when(tmp_path, "gpusched-demo-*/state/daemon.lock", deadline)
        os.kill(int(lock.read_text()), signal.SIGKILL)
        output, _ = demo.communicate(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            demo.wait(30)
    assert demo.returncode == 0, output
    assert "a new one took over" in output
    assert "the same, bit for bit" in output
    assert "ran in 2 attempts" in output
    assert not list(tmp_path.glob("gpusched-demo-*")), "the demo left something behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_kill_end_the_demo_with_its_daemon_and_its_jobs(tmp_path: Path, number: int) -> None:
    deadline = time.monotonic() + DEADLINE
    demo = subprocess.Popen(
        [sys.executable, "-m", "gpusched", "demo", "--fast"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    _when(tmp_path, "gpusched-demo-*/state/attempts/1-1/attempt.json", deadline)
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=max(1.0, deadline - time.monotonic()))
    assert demo.returncode == 128 + number, output
    assert "ending the demo's jobs and its daemon" in output
    assert not list(tmp_path.glob("gpusched-demo-*")), "the demo left something behind"
    assert not _processes_of(tmp_path), "a process of the demo is still there"


def _processes_of(folder: Path) -> list[str]:
    """Processes whose command line or environment names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text:
                found.append(entry.name)
    return found
