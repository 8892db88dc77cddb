"""What only a real GPU can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.devices.worker import NvmlProbe
from gpusched.model.device import DeviceReading, Health

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="there is no NVIDIA driver here (/dev/nvidiactl)"),
]
HOLD_MEMORY = """
import sys, torch
block = torch.ones(256, 1024, 1024, device="cuda")  # 1 GiB of float32
torch.cuda.synchronize()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds 1 GiB on the first GPU."""
    pytest.importorskip("torch")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_MEMORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", "torch cannot use the GPU here"
    yield process
    process.communicate("")


async def _read() -> tuple[DeviceReading, ...]:
    probe = NvmlProbe()
    try:
        sample = await probe.sample()
    finally:
        await probe.close()
    assert sample.error is None, sample.error
    return sample.devices


async def test_every_gpu_is_identified_with_sane_values() -> None:
    devices = await _read()
    assert devices
    for device in devices:
        assert device.health is Health.OK, device.fault
        assert device.uuid.startswith("GPU-") and device.name
        assert 0 <= device.used_mib <= device.total_mib
        assert device.utilization is None or 0 <= device.utilization <= 100


async def test_memory_of_a_process_is_seen_while_it_holds_it(holder: subprocess.Popen[str]) -> None:
    devices = await _read()
    assert max(device.used_mib for device in devices) >= 1024
    if any(device.processes_known and device.processes for device in devices):  # not so inside some containers
        assert any(p.used_mib is None or p.used_mib >= 1024 for d in devices for p in d.processes)


def test_training_on_the_gpu_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """`train_mlp.py` on CUDA, once through and once stopped in the middle, ends with the same weights."""
    pytest.importorskip("torch")
    script = [sys.executable, str(ROOT / "jobs" / "train_mlp.py"), "--epochs", "4", "--device", "cuda"]
    straight = subprocess.run(
        [*script, "--out", "straight.json"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert straight.returncode == 0, straight.stderr
    job_dir, checkpoints = tmp_path / "job", tmp_path / "checkpoints"
    job_dir.mkdir()
    env = {
        **os.environ, "GPUSCHED_JOB_ID": "1", "GPUSCHED_ATTEMPT": "1", "GPUSCHED_JOB_DIR": str(job_dir),
        "GPUSCHED_CHECKPOINT_DIR": str(checkpoints),
    }  # fmt: skip
    slow = [*script, "--slow-ms", "20", "--out", "resumed.json"]
    first = subprocess.Popen(slow, cwd=tmp_path, env=env)
    deadline = time.monotonic() + 60
    while not (job_dir / "progress.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (job_dir / "request.tmp").write_text('{"ask": "stop", "seq": 1, "cause": "test", "deadline": null}')
    (job_dir / "request.tmp").rename(job_dir / "request")
    assert first.wait(60) == 85
    (job_dir / "request").unlink()
    again = subprocess.run([*script, "--out", "resumed.json"], cwd=tmp_path, env={**env, "GPUSCHED_ATTEMPT": "2"},
                           capture_output=True, text=True, timeout=100)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "straight.json").read_text() == (tmp_path / "resumed.json").read_text()
