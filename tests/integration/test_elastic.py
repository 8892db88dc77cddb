"""Logical ranks for real: one run on 6, then 2, then 1, then 3 processes, bit for bit like a single process."""

import json

import pytest
from gangs import Gang
from training_jobs import REPOSITORY, Job

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT = REPOSITORY / "jobs" / "elastic.py"
ARGUMENTS = ["--epochs", "2", "--samples", "330", "--batch", "8"]  # 6 steps of 48 samples in an epoch


@pytest.fixture(scope="module")
def alone(trainer, tmp_path_factory):
    """The result of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    job = Job(trainer, folder, SCRIPT, *ARGUMENTS, "--out", folder / "result").start()
    assert job.wait() == 0, job.output
    return json.loads((folder / "result").read_text())


def test_a_run_that_moves_from_6_to_2_to_1_to_3_processes_has_the_same_bits(trainer, alone, tmp_path):
    job = Gang(trainer, tmp_path, SCRIPT, *ARGUMENTS, "--out", tmp_path / "result")
    # in the middle of both epochs; several processes need one more step to agree, the end of an epoch is a safe point
    for size, stop_at, step in ((6, 2, 3), (2, 1, 5), (1, 3, 7)):
        assert job.run(size, stop_at=stop_at) == [85] * size, job.output
        assert job.saved()["step"] == step
    assert job.run(3, "--workers", "1") == [0, 0, 0], job.output
    assert json.loads((tmp_path / "result").read_text()) == alone
    assert alone["steps"] == 12 and len(alone["curve"]) == 12


def test_a_number_of_processes_that_does_not_fit_is_refused_with_those_that_do(trainer, tmp_path):
    job = Gang(trainer, tmp_path, SCRIPT, *ARGUMENTS)
    assert job.run(4) == [1, 1, 1, 1]
    assert "6 logical ranks cannot be shared evenly by 4 processes" in job.output
    assert "Start 1, 2, 3 or 6 processes" in job.output
