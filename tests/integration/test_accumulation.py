"""A run stopped inside an accumulation window ends bit for bit like one that was not: its gradients are saved."""

import json

import pytest
from training_jobs import HERE, Job

from gpusched.checkpoint import list_checkpoints
from gpusched.checkpoint.disk import contents

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT = HERE / "accumulating_training.py"


def result_of(trainer, folder, stops, *arguments):
    job = Job(trainer, folder, SCRIPT, "--out", folder / "result", *arguments)
    for stop in stops:
        assert job.start(stop_at=stop).wait() == 85, job.output
    assert job.start().wait() == 0, job.output
    return json.loads((folder / "result").read_text()), job


@pytest.mark.parametrize("arguments", [(), ("--zero-first",)], ids=["zeroed last", "zeroed first"])
def test_a_stop_inside_a_window_loses_no_gradient(trainer, tmp_path, arguments):
    expected, _ = result_of(trainer, tmp_path / "straight", [], *arguments)
    # in the first window, in the window that the epoch cuts short, in the second epoch
    found, job = result_of(trainer, tmp_path / "stopped", [2, 8, 5], *arguments)
    assert found == expected
    assert len(list_checkpoints(job.checkpoints)) == 3  # kept of 4


def test_gradients_are_stored_inside_a_window_only(trainer, tmp_path):
    job, stored = Job(trainer, tmp_path, SCRIPT, "--out", tmp_path / "result"), []
    for stop in (3, 1):
        assert job.start(stop_at=stop).wait() == 85, job.output
        newest = list_checkpoints(job.checkpoints)[-1]
        tree, _ = contents.read(newest.path)
        stored.append((newest.step, sorted(tree["own"]["grads"]["values"])))
    names = [f"{layer}.{kind}" for layer in (0, 1, 3) for kind in ("bias", "weight")]
    assert stored == [(0, names), (1, [])]
