"""The reference jobs that need no torch, and what the others say where something is missing; as started by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"
ROOT = JOBS.parent


def start(command, cwd, **env):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_counter_in_bash_saves_on_sigterm_and_counts_on_from_there(tmp_path):
    (tmp_path / "job").mkdir()
    env = {
        "GPUSCHED_CHECKPOINT_DIR": str(tmp_path / "state"),
        "GPUSCHED_JOB_DIR": str(tmp_path / "job"),
        "GPUSCHED_ATTEMPT": "2",
    }
    first = start(["bash", str(JOBS / "count.sh"), "5", "30"], tmp_path, **env)
    assert first.stdout.readline() == "1\n"
    first.send_signal(signal.SIGTERM)
    assert first.stdout.readline() == "saved at 1\n"
    assert first.wait(timeout=30) == 85
    assert first.stdout.read() == ""  # the end of its output: no child of it holds that open any more
    first.stdout.close()
    saved = json.loads((tmp_path / "job" / "saved").read_text())
    assert (saved["attempt"], saved["step"], saved["checkpoint"]) == (2, 1, str(tmp_path / "state" / "counter"))
    second = start(["bash", str(JOBS / "count.sh"), "5", "0"], tmp_path, **env)
    assert second.communicate(timeout=30)[0] == "resuming after 1\n2\n3\n4\n5\ndone\n"
    assert second.returncode == 0


def test_the_counter_runs_by_hand_without_any_of_gpusched(tmp_path):
    job = start(["bash", str(JOBS / "count.sh"), "2", "0"], tmp_path)
    assert job.communicate(timeout=30)[0] == "1\n2\ndone\n" and job.returncode == 0
    assert os.listdir(tmp_path) == ["count.state"]


def test_the_stubborn_job_ignores_sigterm_and_so_does_its_child(tmp_path):
    job = start([sys.executable, str(JOBS / "stubborn.py"), "--seconds", "60"], tmp_path)
    child = None
    try:
        working = 0
        while working < 2:
            line = job.stdout.readline()
            child = int(line.split()[-1]) if line.startswith("started a child") else child
            working += line.startswith("working")
        for pid in (job.pid, child):
            os.kill(pid, signal.SIGTERM)
            assert job.stdout.readline() == "signal 15 ignored\n"
        assert job.poll() is None
    finally:
        job.kill()
        if child is not None:
            os.kill(child, signal.SIGKILL)
        job.communicate(timeout=30)


@pytest.mark.parametrize("job", sorted(path.name for path in JOBS.glob("*.py") if path.name != "stubborn.py"))
def test_a_training_job_says_what_to_install_where_torch_is_missing(tmp_path, job):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    run = start([sys.executable, str(JOBS / job)], tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    output = run.communicate(timeout=30)[0]
    assert re.fullmatch(rf"{job} needs PyTorch.*: pip install 'gpusched\[torch\]'\n", output), output
    assert run.returncode == 1


@pytest.mark.parametrize(
    "job, missing",
    [("metrics.py", "torchmetrics"), ("finetune_lora.py", "peft"), ("ensemble_library.py", "torchensemble")],
)
def test_a_job_that_needs_an_extra_says_so(tmp_path, job, missing):
    (tmp_path / "torch.py").write_text("nn = None")  # the real one would take seconds to import
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not here')")
    run = start([sys.executable, str(JOBS / job)], tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    output = run.communicate(timeout=30)[0]
    assert re.fullmatch(rf"{job} needs {missing}.*: pip install .*\n", output) and run.returncode == 1, output


LEGACY = ["bash", str(JOBS / "legacy.sh")]


def test_an_old_program_leaves_at_its_next_restart_file_and_goes_on_from_there(tmp_path):
    state = tmp_path / "state"
    first = start([*LEGACY, "1000", "0.2"], tmp_path, GPUSCHED_CHECKPOINT_DIR=str(state))
    assert first.stdout.readline() == "solver: starting\n"
    first.send_signal(signal.SIGTERM)
    assert first.stdout.readline() == "asked to stop: waiting for the next restart file\n"
    assert re.fullmatch(r"saved at step [1-9]\d*00\n|saved at step 100\n", first.stdout.readline())
    assert first.wait(timeout=30) == 85
    first.stdout.close()
    second = start([*LEGACY, "1000", "0"], tmp_path, GPUSCHED_CHECKPOINT_DIR=str(state))
    assert "solver: going on after step" in second.communicate(timeout=30)[0] and second.returncode == 0
    calm = start([*LEGACY, "1000", "0"], tmp_path)
    assert "solver: starting\nsolver: done" in calm.communicate(timeout=30)[0] and calm.returncode == 0
    assert (state / "result").read_text() == (tmp_path / "legacy.state" / "result").read_text()


def test_where_the_next_restart_file_does_not_come_in_time_the_last_one_must_do(tmp_path):
    job = start([*LEGACY, "1000", "2"], tmp_path, LEGACY_PATIENCE="0")
    end = time.monotonic() + 60
    while not (tmp_path / "legacy.state" / "restart").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=30)[0].splitlines()[-1] == "saved at step 100" and job.returncode == 85


def test_checkpoint_exec_keeps_the_restart_file_of_the_plain_program(tmp_path):
    job, folder = tmp_path / "job", tmp_path / "checkpoints"
    job.mkdir()
    env = {"GPUSCHED_CHECKPOINT_DIR": str(folder), "GPUSCHED_JOB_DIR": str(job), "GPUSCHED_ATTEMPT": "1"}
    # as `gpusched checkpoint-exec`, without the price of the command line
    wrapped = [sys.executable, "-m", "gpusched.checkpoint.wrap", "--files", "restart", "--", *LEGACY, "--plain", "1000"]
    first = start([*wrapped, "0.3"], tmp_path, **env)
    assert first.stdout.readline() == "solver: starting\n"
    end = time.monotonic() + 60
    while not (tmp_path / "restart").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 85, first.stdout.read()
    first.stdout.close()
    (tmp_path / "restart").unlink()  # as where the next attempt begins in an empty directory
    second = start([*wrapped, "0"], tmp_path, **env)
    output = second.communicate(timeout=30)[0]
    assert "solver: going on after step" in output and second.returncode == 0, output
    calm = start([*LEGACY, "1000", "0"], tmp_path)
    assert calm.communicate(timeout=30)[0] and calm.returncode == 0
    assert (tmp_path / "result").read_text() == (tmp_path / "legacy.state" / "result").read_text()
