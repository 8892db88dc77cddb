"""Reference jobs as people submit them: an array with a job that depends on it, and a program that knows nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from daemons import JOBS, Place, until
from training_jobs import Job
from training_jobs import Zygote as Trainer


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    zygote = Trainer()
    yield zygote
    zygote.close()


def submit(place: Place, *words: str) -> str:
    """By the command line, with this Python first on the PATH, so that an executable job finds torch."""
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = place.cli("submit", "--parsable", *words, PATH=here, PYTHONPATH=str(JOBS.parent), OMP_NUM_THREADS="1")
    assert done.code == 0, done.err
    return done.out.strip()


def undisturbed(trainer: Trainer, folder: Path, members: int, arguments: list[str]) -> dict[str, Any]:
    """The result of the same ensemble without a daemon and without a stop."""
    parts = ["--folder", str(folder / "parts")]
    for member in range(members):
        job = Job(trainer, folder / str(member), JOBS / "ensemble.py", *arguments, *parts, "--member", str(member))
        assert job.start().wait() == 0, job.output
    combine = Job(trainer, folder / "combine", JOBS / "ensemble_combine.py", *arguments, *parts)
    assert combine.start("--out", folder / "calm.json").wait() == 0, combine.output
    result: dict[str, Any] = json.loads((folder / "calm.json").read_text())
    return result


@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra gpusched[torch]")
def test_an_array_of_members_and_the_job_that_combines_them_survive_a_preemption(
    place: Place, trainer: Trainer, tmp_path: Path
) -> None:
    arguments = ["--method", "stacking", "--task", "regression", "--members", "2", "--epochs", "2", "--batch", "50"]
    slowly = [*arguments, "--slow-ms", "60"]
    array = submit(place, "--array", "0-1", "-g", "1", str(JOBS / "ensemble.py"), *slowly)
    combine = str(JOBS / "ensemble_combine.py")
    combine = submit(place, "--after", "@", "-g", "0", combine, *arguments, "--out", "all.json")
    assert place.job(combine)["reason"] == "Dependency"
    second = f"{array}_1"
    progress = Path(place.running(second)["job_dir"], "progress.jsonl")
    until(progress.exists, lambda: (place.story(second), place.output(second)))
    assert place.cli("preempt", second).code == 0
    expected = undisturbed(trainer, tmp_path, 2, arguments)
    for key, attempts in ((f"{array}_0", 1), (second, 2)):
        job = place.ended(key)
        assert (job["state"], job["attempt"]) == ("COMPLETED", attempts), (place.story(key), place.output(key))
    assert place.job(second)["attempts"][0]["saved"], place.story(second)
    assert "resumed from step-" in place.output(second)
    assert place.ended(combine)["state"] == "COMPLETED", place.output(combine)
    assert json.loads((place.work / "all.json").read_text()) == expected
    assert (place.work / "ensemble.parts" / "stacking-regression-1.pt").exists()


def test_a_program_that_knows_nothing_goes_on_from_its_own_restart_file(place: Place, tmp_path: Path) -> None:
    command = [str(JOBS / "legacy.sh"), "1500", "0.05"]
    calm = subprocess.run(
        [*command[:-1], "0"], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
    )
    assert calm.returncode == 0 and "solver: done after 1500 steps" in calm.stdout, calm.stderr
    key = submit(place, "-g", "1", "-q", "low", "--checkpoint-dir", str(place.work / "solver-%j"), *command)
    folder = place.work / f"solver-{key}"
    for attempt in (1, 2):
        until(lambda wanted=attempt: place.job(key)["attempt"] == wanted, lambda: place.story(key))  # type: ignore[misc]
        place.running(key)
        until(lambda wanted=attempt: place.output(key).count("solver:") == wanted, lambda: place.output(key))  # type: ignore[misc]
        assert place.cli("preempt", key).code == 0
    job = place.ended(key)
    assert (job["state"], job["attempt"]) == ("COMPLETED", 3), (place.story(key), place.output(key))
    steps = [attempt["saved"]["step"] for attempt in job["attempts"][:2]]
    assert 0 < steps[0] < steps[1] < 1500
    assert [f"solver: going on after step {step}" in place.output(key) for step in steps] == [True, True]
    assert (folder / "result").read_text() == (tmp_path / "legacy.state" / "result").read_text()
    assert not (folder / "restart").exists()
