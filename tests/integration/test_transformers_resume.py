"""A Hugging Face Trainer run that was preempted in mid-epoch ends bit for bit like one that was not."""

import json

import pytest
from training_jobs import HERE, Job, Zygote

pytest.importorskip("transformers", reason="needs the extra gpusched[frameworks]")
pytest.importorskip("accelerate", reason="needs the extra gpusched[frameworks]")
SCRIPT = HERE / "transformers_training.py"


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("transformers.trainer", "transformers.models.gpt2.modeling_gpt2")
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    results = {}

    def find(*arguments):
        if arguments not in results:
            folder = tmp_path_factory.mktemp("undisturbed")
            job = Job(zygote, folder, SCRIPT, "--out", folder / "result", *arguments).start(HF_HUB_OFFLINE="1")
            assert job.wait() == 0, job.output
            results[arguments] = json.loads((folder / "result").read_text())
        return results[arguments]

    return find


def stopped(zygote, folder, points, *arguments):
    job = Job(zygote, folder, SCRIPT, "--out", folder / "result", *arguments)
    for point in points:
        job.start(stop_at=point, HF_HUB_OFFLINE="1")
        assert job.wait() == 85, job.output
        assert job.saved()["attempt"] == job.attempt, job.output
    job.start(HF_HUB_OFFLINE="1")
    assert job.wait() == 0, job.output
    return json.loads((folder / "result").read_text())


@pytest.mark.parametrize(
    "points, arguments",
    [
        ([2], ()),
        ([3, 4, 6], ("--workers", "2")),
        ([2, 2], ("--accumulate", "3", "--evaluate", "epoch")),
    ],
    ids=["1 stop", "2 workers", "accumulation"],
)
def test_a_stopped_trainer_ends_like_one_that_was_not(zygote, undisturbed, tmp_path, points, arguments):
    expected = undisturbed(*arguments)
    assert stopped(zygote, tmp_path, points, *arguments) == expected
