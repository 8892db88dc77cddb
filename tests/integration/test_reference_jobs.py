"""The reference jobs that need no torch, as a person starts them by hand."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_the_training_job_says_what_to_install_where_torch_is_missing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    job = start([sys.executable, str(JOBS / "train_mlp.py")], tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    output = job.communicate(timeout=30)[0]
    assert output == "train_mlp.py needs PyTorch: pip install 'gpusched[torch]'\n" and job.returncode == 1
