"""A run that was preempted ends bit for bit like one that was not: real processes, stopped by real requests."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from training_jobs import HERE, REPOSITORY, Job

from gpusched.checkpoint.disk.files import list_checkpoints

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT, MLP = HERE / "exact_training.py", REPOSITORY / "jobs" / "train_mlp.py"


@pytest.fixture(scope="module")
def undisturbed(trainer, tmp_path_factory):
    """The result of the training script without a stop, by extra arguments."""
    results = {}

    def result_of(*arguments):
        if arguments not in results:
            folder = tmp_path_factory.mktemp("undisturbed")
            job = Job(trainer, folder, SCRIPT, "--out", folder / "result", *arguments).start()
            assert job.wait() == 0, job.output
            results[arguments] = json.loads((folder / "result").read_text())
        return results[arguments]

    return result_of


def stopped(trainer, folder, holds, *arguments):
    """The result of the training script when it was stopped at each of these holds."""
    job = Job(trainer, folder, SCRIPT, "--out", folder / "result", *arguments)
    for hold in holds:
        job.start(*hold)
        job.wait_for("holding")
        job.ask("stop")
        assert job.wait() == 85, job.output
        saved = job.saved()
        assert saved["attempt"] == job.attempt
        assert list_checkpoints(saved["checkpoint"].rpartition("/")[0], checksums=True)[-1].path == saved["checkpoint"]
        if hold[0] == "--hold":
            assert saved["step"] == int(hold[1])
    job.start()
    assert job.wait() == 0, job.output
    return json.loads((folder / "result").read_text())


def at_steps(count, seed):
    return [("--hold", str(step)) for step in sorted(random.Random(seed).sample(range(1, 21), count))]


@pytest.mark.parametrize(
    "holds, arguments",
    [
        (at_steps(1, seed=1), ()),
        (at_steps(3, seed=2), ()),
        (at_steps(1, seed=3), ("--workers", "2")),
        (at_steps(3, seed=4), ("--workers", "2", "--persistent")),
        ([("--hold", "7"), ("--hold", "14"), ("--hold", "21")], ()),
        ([("--hold-evaluation", "0"), ("--hold-evaluation", "2")], ()),
        ([("--hold", "2"), ("--hold", "9")], ("--weighted",)),
    ],
    ids=["1 stop", "3 stops", "2 workers", "persistent", "ends of epochs", "in evaluations", "weighted sampler"],
)
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(trainer, undisturbed, tmp_path, holds, arguments):
    expected = undisturbed(*arguments)
    assert stopped(trainer, tmp_path, holds, *arguments) == expected
    assert expected["steps"] == 21


def test_the_number_of_workers_changes_nothing(undisturbed):
    one = undisturbed()
    assert undisturbed("--workers", "2") == one
    assert undisturbed("--workers", "2", "--persistent") == one


def test_every_sample_is_seen_once_in_every_epoch(undisturbed):
    for epoch in range(3):
        seen = [index for number, batch in undisturbed()["seen"] if number == epoch for index in batch]
        assert sorted(seen) == list(range(100))


def test_the_example_job_leaves_nobody_behind_when_it_is_stopped_and_resumes_exactly(trainer, tmp_path):
    arguments = ["--epochs", "2", "--samples", "512", "--workers", "2"]
    straight = Job(trainer, tmp_path / "straight", MLP, *arguments, "--out", tmp_path / "straight.json").start()
    job = Job(trainer, tmp_path / "stopped", MLP, *arguments, "--out", tmp_path / "stopped.json")
    job.start("--slow-ms", "100")
    job.wait_for("progress.jsonl")
    job.ask("stop")
    assert job.wait() == 85, job.output
    # nobody of its session is left: not even for the five seconds that abandoned workers live on
    left = subprocess.run(["ps", "-o", "pid=,args=", "--sid", str(job.pid)], capture_output=True, text=True)
    assert [line for line in left.stdout.splitlines() if "<defunct>" not in line] == []
    job.start()
    assert job.wait() == 0, job.output
    assert straight.wait() == 0, straight.output
    assert json.loads((tmp_path / "stopped.json").read_text()) == json.loads((tmp_path / "straight.json").read_text())


def test_a_save_request_is_acknowledged_and_the_training_goes_on(trainer, tmp_path):
    job = Job(trainer, tmp_path, MLP, "--epochs", "1", "--samples", "640")
    job.start("--slow-ms", "20")
    job.wait_for("watching")
    job.ask("save")
    saved = json.loads(job.wait_for("saved").read_text())
    assert job.wait() == 0, job.output
    names = [found.name for found in list_checkpoints(job.checkpoints, checksums=True) if found.good]
    assert names == [f"step-{saved['step']}", "step-10"] or saved["step"] == 10
    assert not (job.directory / "watching").exists()  # it no longer polls


def test_sigterm_by_hand_saves_at_the_next_step_and_leaves_with_85(trainer, tmp_path):
    job = Job(trainer, tmp_path, MLP, "--epochs", "1", "--samples", "640")
    job.start("--slow-ms", "50")
    job.wait_for("progress.jsonl")
    subprocess.run(["kill", "-TERM", str(job.pid)], check=True)
    assert job.wait() == 85, job.output
    assert "SIGTERM" in job.output
    assert list_checkpoints(job.checkpoints)[-1].good


def test_kill_9_at_any_moment_of_saving_leaves_a_checkpoint_that_loads(trainer, tmp_path):
    chance = random.Random(11)
    script = tmp_path / "saves_all_the_time.py"
    script.write_text(SAVES_ALL_THE_TIME)
    job, newest = Job(trainer, tmp_path / "job", script), 0
    for _ in range(10):
        job.start()
        job.wait_for("progress.jsonl")
        job.wait_until(lambda: list_checkpoints(job.checkpoints), "saved")  # or the first kill may come too early
        time.sleep(chance.uniform(0.0, 0.1))  # not a wait: the random moment itself
        subprocess.run(["kill", "-KILL", str(job.pid)], check=True)
        assert job.wait() == -signal.SIGKILL, job.output
        good = [found for found in list_checkpoints(job.checkpoints, checksums=True) if found.good]
        assert good and good[-1].step >= newest
        newest = good[-1].step
    job.start(LAST_STEP=str(newest + 3))
    assert job.wait() == 0, job.output
    assert f"steps {newest + 3} sum {sum(range(newest + 3))}" in job.output
    assert not list(job.checkpoints.glob(".tmp-*")), "leftovers of dead processes are cleared"


SAVES_ALL_THE_TIME = """
import os
import torch
from gpusched.checkpoint import Run
last = int(os.environ.get("LAST_STEP", 1_000_000))
model = torch.nn.Linear(1000, 1000)
run = Run(model, every_steps=1)
run.values["sum"] = 0
for epoch in run.epochs(1):
    for number in run.batches(range(last)):
        run.values["sum"] += number
        run.step()
print("steps", run.steps, "sum", run.values["sum"])
"""


def test_the_script_runs_by_hand_and_saves_nothing(tmp_path):
    command = [sys.executable, str(MLP), "--epochs", "1", "--samples", "128"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == 0 and "final loss" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
