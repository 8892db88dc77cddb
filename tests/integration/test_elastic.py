"""Logical ranks for real: one run on 6, then 2, then 1, then 3 processes, bit for bit like a single process."""

import json
import socket

import pytest
from training_jobs import REPOSITORY, Job, Zygote

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT = REPOSITORY / "jobs" / "elastic.py"
ARGUMENTS = ["--epochs", "2", "--samples", "330", "--batch", "8"]  # 6 steps of 48 samples in an epoch


class Gang(Job):
    """An attempt of several processes, as torchrun would start them."""

    def run(self, size, *arguments, stop_at=None):
        """The exit codes of an attempt on so many processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        env.update(MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0")
        self.start(*arguments, stop_at=stop_at, **env)
        env.update(
            GPUSCHED_JOB_ID="1",
            GPUSCHED_ATTEMPT=str(self.attempt),
            GPUSCHED_JOB_DIR=str(self.directory),
            GPUSCHED_CHECKPOINT_DIR=str(self.checkpoints),
        )
        pids = [self.pid]
        for rank in range(1, size):
            mine = dict(env, RANK=str(rank), LOCAL_RANK=str(rank))
            output = self.folder / f"output-{self.attempt}"
            pids.append(self.zygote.start([*self.command, *arguments], mine, output))
        codes = []
        for self.pid in pids:
            codes.append(self.wait())
        return codes


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def alone(zygote, tmp_path_factory):
    """The result of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    job = Job(zygote, folder, SCRIPT, *ARGUMENTS, "--out", folder / "result").start()
    assert job.wait() == 0, job.output
    return json.loads((folder / "result").read_text())


def test_a_run_that_moves_from_6_to_2_to_1_to_3_processes_has_the_same_bits(zygote, alone, tmp_path):
    job = Gang(zygote, tmp_path, SCRIPT, *ARGUMENTS, "--out", tmp_path / "result")
    for size, stop_at in ((6, 2), (2, 3), (1, 3)):  # in the middle of both epochs
        assert job.run(size, stop_at=stop_at) == [85] * size, job.output
    assert job.run(3, "--workers", "1") == [0, 0, 0], job.output
    assert json.loads((tmp_path / "result").read_text()) == alone
    assert alone["steps"] == 12 and len(alone["curve"]) == 12


def test_a_number_of_processes_that_does_not_fit_is_refused_with_those_that_do(zygote, tmp_path):
    job = Gang(zygote, tmp_path, SCRIPT, *ARGUMENTS)
    assert job.run(4) == [1, 1, 1, 1]
    assert "6 logical ranks cannot be shared evenly by 4 processes" in job.output
    assert "Start 1, 2, 3 or 6 processes" in job.output
