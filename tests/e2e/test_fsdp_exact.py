"""jobs/fsdp.py for real: preempted twice it ends bit for bit like undisturbed, and goes on with any number of ranks."""

import json

import pytest
from gangs import Gang
from training_jobs import REPOSITORY, Zygote

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT = REPOSITORY / "jobs" / "fsdp.py"
SMALL = ["--epochs", "4", "--samples", "240", "--width", "10", "--blocks", "2"]  # 5 steps of 48 samples in an epoch


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("torch.distributed.fsdp", "torch.distributed.checkpoint.default_planner")
    yield zygote
    zygote.close()


class Training:
    def __init__(self, zygote, folder, *arguments):
        self.folder = folder
        self.gang = Gang(zygote, folder, SCRIPT, *SMALL, *arguments, "--out", folder / "result")

    def stop(self, size, at):
        """An attempt that is stopped at its safe point of this number, or a few later: the ranks agree on it first."""
        assert self.gang.run(size, stop_at=at) == [85] * size, self.gang.output

    def finish(self, size):
        assert self.gang.run(size) == [0] * size, self.gang.output
        return json.loads((self.folder / "result").read_text())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_preempted_twice_it_ends_with_the_same_bits(size, zygote, tmp_path):
    straight = Training(zygote, tmp_path / "straight").finish(size)
    stopped = Training(zygote, tmp_path / "stopped")
    stopped.stop(size, at=3)
    stopped.stop(size, at=2)
    assert stopped.finish(size) == straight
    assert straight["steps"] == 20 and len(straight["curve"]) == 20


def test_what_is_restored_on_another_number_of_ranks_is_the_same_state(zygote, tmp_path):
    training = Training(zygote, tmp_path)
    saved = training.finish(4)
    for size in (3, 2, 1):  # nothing is left to train: the digests are of what was loaded
        loaded = training.finish(size)
        assert "training is complete" in training.gang.output
        assert (loaded["weights"], loaded["moments"]) == (saved["weights"], saved["moments"])
        assert loaded["curve"] == saved["curve"]


def test_a_run_that_moves_between_ranks_stays_close_to_one_that_does_not(zygote, tmp_path):
    straight = Training(zygote, tmp_path / "straight", "--dropout", "0").finish(2)
    moving = Training(zygote, tmp_path / "moving", "--dropout", "0")
    for size, at in ((4, 3), (2, 2), (1, 2)):
        moving.stop(size, at)
    found = moving.finish(3)
    assert found["curve"] == pytest.approx(straight["curve"], rel=1e-3)
    assert found["steps"] == straight["steps"]
