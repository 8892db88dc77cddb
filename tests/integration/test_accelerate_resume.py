"""A run with accelerate that was preempted in mid-epoch ends bit for bit like one that was not."""

import json

import pytest
from training_jobs import HERE, Job, Zygote

pytest.importorskip("accelerate", reason="needs the extra gpusched[frameworks]")
SCRIPT = HERE / "accelerate_training.py"


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("accelerate")
    yield zygote
    zygote.close()


def result_of(job):
    assert job.wait() == 0, job.output
    result = json.loads((job.folder / "result").read_text())
    told = " ".join(result.pop("told"))
    assert "not registered" not in told
    return result


@pytest.mark.parametrize(
    "points, arguments",
    [
        ([2], ()),
        ([3, 5, 4], ("--workers", "2", "--accumulate", "4")),
        ([4, 3], ("--iterable", "--accumulate", "4")),
    ],
    ids=["1 stop", "2 workers, in accumulation windows", "without a length"],
)
def test_a_stopped_run_with_accelerate_ends_like_one_that_was_not(zygote, tmp_path, points, arguments):
    expected = result_of(
        Job(zygote, tmp_path / "straight", SCRIPT, "--out", tmp_path / "straight/result", *arguments).start()
    )
    job = Job(zygote, tmp_path / "stopped", SCRIPT, "--out", tmp_path / "stopped/result", *arguments)
    for point in points:
        assert job.start(stop_at=point).wait() == 85, job.output
        assert job.saved()["attempt"] == job.attempt
    assert result_of(job.start()) == expected
    assert expected["synced"][5]  # the last batch of an epoch always makes a step
    if "--accumulate" in arguments:
        assert expected["synced"][:6] == [False, False, False, True, False, True]
