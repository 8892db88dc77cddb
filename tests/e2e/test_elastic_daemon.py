"""jobs/elastic.py with a real daemon: it gives a device to a second job, grows back, and ends with the same bits."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import JOBS, Place, Zygote, a_daemon, until
from training_jobs import Job as Training
from training_jobs import Zygote as Trainer

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
ARGUMENTS = ["--epochs", "2", "--samples", "960"]  # 10 steps in an epoch
SLOWLY = """
import os, runpy, sys, time
import torch

quick = torch.optim.AdamW.step

def step(self, *arguments, **named):
    for _ in range(20):
        if not os.path.exists("hurry"):
            time.sleep(0.05)
    return quick(self, *arguments, **named)

torch.optim.AdamW.step = step
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Place]:
    config = '[policy]\nresize_interval = "0s"\n'
    with a_daemon(tmp_path_factory.mktemp("elastic") / "p", zygote, config=config) as one:
        yield one


def on(place: Place, key: str, count: int, attempt: int) -> dict[str, object]:
    """Until this attempt of the job trains on so many devices."""

    def there() -> dict[str, object] | None:
        job = place.job(key)
        assert job["state"] not in ("FAILED", "COMPLETED"), (place.story(key), place.output(key))
        ready = job["attempt"] == attempt and job["state"] == "RUNNING" and job["watching"]
        return job if ready and (Path(job["job_dir"]) / "progress.jsonl").exists() else None

    job = until(there, lambda: (place.story(key), place.output(key)))
    assert len(job["devices"]) == count
    return job


def test_an_elastic_job_gives_a_device_away_and_grows_back_with_the_same_bits(place: Place, tmp_path: Path) -> None:
    (place.work / "slowly.py").write_text(SLOWLY)
    train = f"slowly.py {JOBS / 'elastic.py'} {' '.join(ARGUMENTS)} --out elastic.json"
    torchrun = f"exec {sys.executable} -m torch.distributed.run --standalone --nproc-per-node $GPUSCHED_NUM_GPUS"
    here = {"PYTHONPATH": str(JOBS.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["--parsable", "-g", "1-2", "--expect", "2h", "-J", "wide", "sh", "-c", f"{torchrun} {train}"]
    done = place.cli("submit", *words, **here)
    assert done.code == 0, done.err
    wide = done.out.strip()
    on(place, wide, 2, attempt=1)

    other = place.sh("until [ -e enough ]; do sleep 0.05; done", name="other")
    assert len(place.running(other)["devices"]) == 1
    on(place, wide, 1, attempt=2)
    assert "1-2 (now 1)" in place.cli("queue").out

    (place.work / "enough").touch()
    on(place, wide, 2, attempt=3)
    (place.work / "hurry").touch()
    job = place.ended(wide)
    assert (job["state"], job["attempt"], job["resizes"]) == ("COMPLETED", 3, 2), place.output(wide)
    story = "\n".join(place.story(wide))
    assert f"gives 1 of its 2 devices to job {other}" in story and "grows from 1 to 2 devices" in story, story
    assert [len(attempt["devices"]) for attempt in job["attempts"]] == [2, 1, 2]

    trainer = Trainer("torch")
    try:
        calm = Training(trainer, tmp_path, JOBS / "elastic.py", *ARGUMENTS, "--out", tmp_path / "calm.json").start()
        assert calm.wait() == 0, calm.output
    finally:
        trainer.close()
    assert json.loads((place.work / "elastic.json").read_text()) == json.loads((tmp_path / "calm.json").read_text())
