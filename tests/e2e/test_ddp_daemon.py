"""jobs/ddp.py as people submit it: three ranks under the real torchrun, preempted and resumed by a real daemon."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from daemons import JOBS, Place, until
from gangs import Gang
from training_jobs import Zygote as Trainer

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
ARGUMENTS = ["--epochs", "2", "--samples", "960", "--workers", "1"]  # 20 steps in an epoch


def processes_with(variable: str) -> list[str]:
    """torchrun gives each rank a session of its own, so they are known by their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                found += [pid] if variable.encode() in file.read().split(b"\0") else []
        except OSError:
            continue
    return found


def test_three_ranks_under_torchrun_leave_together_and_go_on_with_the_same_bits(place: Place, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    here = {"PYTHONPATH": str(JOBS.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["--parsable", "-g", "1", *torchrun, str(JOBS / "ddp.py"), *ARGUMENTS, "--slow-ms", "50"]
    done = place.cli("submit", *words, "--out", "ddp.json", **here)
    assert done.code == 0, done.err
    key = done.out.strip()
    directory = Path(place.running(key)["job_dir"])
    until((directory / "progress.jsonl").exists, lambda: (place.story(key), place.output(key)))
    assert place.cli("preempt", key).code == 0
    until((directory / "saved").exists, lambda: (place.story(key), place.output(key)))
    until(lambda: not processes_with(f"GPUSCHED_JOB_DIR={directory}"), lambda: place.processes())
    trainer = Trainer("torch.distributed")
    try:
        calm = Gang(trainer, tmp_path, JOBS / "ddp.py", *ARGUMENTS, "--out", tmp_path / "calm.json")
        assert calm.run(3) == [0, 0, 0], calm.output
    finally:
        trainer.close()
    job = place.ended(key)
    assert (job["state"], job["attempt"]) == ("COMPLETED", 2), (place.story(key), place.output(key))
    first = job["attempts"][0]  # the launcher's exit code is 1 whatever its ranks end with: the file decides
    assert 0 < first["saved"]["step"] < 40 and f"resumed from step-{first['saved']['step']}" in place.output(key)
    assert json.loads((place.work / "ddp.json").read_text()) == json.loads((tmp_path / "calm.json").read_text())
