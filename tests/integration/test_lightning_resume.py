"""A Lightning run that was preempted in mid-epoch ends bit for bit like one that was not: real Lightning processes."""

import json

import pytest
from training_jobs import HERE, Job, Zygote

from gpusched.checkpoint.disk.files import list_checkpoints

pytest.importorskip("lightning", reason="needs the extra gpusched[frameworks]")
SCRIPT = HERE / "lightning_training.py"


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("lightning.pytorch", "torchmetrics")
    yield zygote
    zygote.close()


def result_of(job):
    """What the script ended with, and every line that its logger got."""
    text = (job.folder / "result").read_text()
    lines = (job.folder / "result.log").read_text().splitlines()
    return json.loads(text), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    results = {}

    def find(*arguments):
        if arguments not in results:
            folder = tmp_path_factory.mktemp("undisturbed")
            job = Job(zygote, folder, SCRIPT, "--out", folder / "result", *arguments).start()
            assert job.wait() == 0, job.output
            results[arguments] = result_of(job)
        return results[arguments]

    return find


def stopped(zygote, folder, points, *arguments):
    job = Job(zygote, folder, SCRIPT, "--out", folder / "result", *arguments)
    for point in points:
        job.start(stop_at=point)
        assert job.wait() == 85, job.output
        saved = job.saved()
        assert saved["attempt"] == job.attempt, job.output
        assert list_checkpoints(str(job.checkpoints), checksums=True)[-1].path == saved["checkpoint"]
    job.start()
    assert job.wait() == 0, job.output
    return result_of(job)


@pytest.mark.parametrize(
    "points, arguments",
    [
        ([3], ()),
        ([3, 2, 6, 1], ("--workers", "2")),
        ([6, 1, 1], ()),
        ([7, 5], ("--check-every", "0.5")),
        ([3, 2], ("--accumulate", "4")),
        ([2, 3, 7], ("--iterable",)),
        ([8, 3], ("--plateau",)),
        ([4, 5], ("--two-loaders",)),
    ],
    ids=[
        "1 stop",
        "2 workers",
        "in validation",
        "validation in mid-epoch",
        "accumulation",
        "iterable",
        "plateau",
        "two loaders",
    ],
)
def test_a_stopped_run_ends_like_one_that_was_not(zygote, undisturbed, tmp_path, points, arguments):
    expected, expected_lines = undisturbed(*arguments)
    result, lines = stopped(zygote, tmp_path, points, *arguments)
    assert lines == expected_lines
    assert result == expected
