"""Ranks that the script starts itself (torch.multiprocessing.spawn) leave together when stopped and resume exactly."""

import json

import pytest
from training_jobs import HERE, Job

from gpusched.checkpoint import list_checkpoints

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")


def test_three_spawned_ranks_preempted_twice_end_bit_for_bit_like_undisturbed(trainer, tmp_path):
    straight, stopped = (
        Job(trainer, tmp_path / name, HERE / "spawned_training.py", "--out", tmp_path / f"{name}.json")
        for name in ("straight", "stopped")
    )
    straight.start(GLOO_SOCKET_IFNAME="lo")
    for stop in (3, 5):
        stopped.start("--pause", "0.05", stop_at=stop, GLOO_SOCKET_IFNAME="lo", GPUSCHED_AGREE="always")
        assert stopped.wait() == 1  # the parent hands no exit code on: after a request that makes no difference
        saved = stopped.saved()
        assert saved and "stopping as asked" in stopped.output, stopped.output
        assert list_checkpoints(str(stopped.checkpoints), checksums=True)[-1].path == saved["checkpoint"]
    stopped.start(GLOO_SOCKET_IFNAME="lo")
    assert stopped.wait() == 0, stopped.output
    assert straight.wait() == 0, straight.output
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("straight", "stopped"))
    assert first == second and [steps for _, steps in first["drawn"]] == [48, 48, 48]
