"""A reference job run twice, once undisturbed and once preempted at random safe points, and both compared."""

import json
import random

from training_jobs import REPOSITORY, Job

from gpusched.checkpoint.disk.compare import compare
from gpusched.checkpoint.disk.files import list_checkpoints

JOBS = REPOSITORY / "jobs"
_TIMES = ("history/",)  # how long it has trained, which no two runs have in common
_UNSEEDED = ("rng/python", "rng_epoch/python", "rng/numpy", "rng_epoch/numpy")  # most jobs draw from torch alone


def newest(job):
    """The newest checkpoint, which must be whole."""
    found = list_checkpoints(job.checkpoints, checksums=True)[-1]
    assert found.good, found
    return found


def preempted(job, points, seed, times=2):
    """Run a job to its end, stopped at so many safe points, drawn from the first `points` of the whole run.

    Gives the safe points, counted over all attempts.
    """
    stops, before = sorted(random.Random(seed).sample(range(1, points + 1), times)), 0
    for stop in stops:
        job.start(stop_at=stop - before)
        assert job.wait() == 85, job.output
        assert newest(job).path == job.saved()["checkpoint"]
        before = stop
    job.start()
    assert job.wait() == 0, job.output
    return stops


def ends_the_same(zygote, folder, script, *arguments, points, seed=1, seeds_all=False):
    """Assert that a job, preempted twice, leaves the same result and the same last checkpoint; gives the result.

    With `seeds_all` the job has seeded Python's and NumPy's generators too, so their state must be the same as well.
    """
    folder.mkdir(exist_ok=True)
    straight, stopped = (
        Job(zygote, folder / name, JOBS / script, *arguments, "--out", folder / f"{name}.json")
        for name in ("straight", "stopped")
    )
    straight.start()  # on the other core
    stops = preempted(stopped, points, seed)
    assert straight.wait() == 0, straight.output
    results = [json.loads((folder / f"{name}.json").read_text()) for name in ("straight", "stopped")]
    assert results[1] == results[0], f"stopped at {stops}\n{stopped.output}"
    aside = _TIMES if seeds_all else _TIMES + _UNSEEDED
    differences = compare(newest(straight).path, newest(stopped).path)
    assert [str(one) for one in differences if not one.place.startswith(aside)] == [], f"stopped at {stops}"
    return results[0]
