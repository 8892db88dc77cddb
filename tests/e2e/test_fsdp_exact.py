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


@pytest.mark.parametrize("size, others", [(1, ()), (2, ()), (3, ()), (4, (3, 2, 1))])
def test_preempted_twice_it_ends_with_the_same_bits(size, others, zygote, tmp_path):
    straight = Training(zygote, tmp_path / "straight").finish(size)
    stopped = Training(zygote, tmp_path / "stopped")
    stopped.stop(size, at=3)
    stopped.stop(size, at=2)
    assert stopped.finish(size) == straight
    assert straight["steps"] == 20 and len(straight["curve"]) == 20
    for other in others:  # nothing is left to train: these digests are of what was loaded
        loaded = stopped.finish(other)
        assert "training is complete" in stopped.gang.output
        del loaded["accuracy"]  # computed by other numbers of ranks
        assert loaded == {key: straight[key] for key in loaded}, f"saved on {size}, loaded on {other}"


def test_a_run_that_moves_between_ranks_stays_close_to_one_that_does_not(zygote, tmp_path):
    straight = Training(zygote, tmp_path / "straight", "--dropout", "0").finish(1)
    moving = Training(zygote, tmp_path / "moving", "--dropout", "0")
    for size, at in ((4, 3), (1, 2)):
        moving.stop(size, at)
    found = moving.finish(2)
    assert found["curve"] == pytest.approx(straight["curve"], rel=1e-3)
    assert found["steps"] == straight["steps"]
