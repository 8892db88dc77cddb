"""Stopped runs go on with the same batches, whatever they come from: real processes, stopped at chosen steps."""

import json

import pytest
from gangs import Gang
from training_jobs import HERE, Job

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT = HERE / "loading_training.py"


@pytest.fixture(scope="module")
def straight(trainer, tmp_path_factory):
    """What a run of one process is given when nobody stops it."""
    results = {}

    def result_of(kind, batch):
        if kind not in results:
            folder = tmp_path_factory.mktemp(kind)
            job = Job(trainer, folder, SCRIPT, folder / "seen", kind, batch).start()
            assert job.wait() == 0, job.output
            results[kind] = json.loads((folder / "seen").read_text())
        return results[kind]

    return result_of


def test_ranks_that_become_fewer_and_more_go_through_the_same_global_batches(trainer, straight, tmp_path):
    job = Gang(trainer, tmp_path, SCRIPT, tmp_path / "seen", "sharded")
    # ranks need one more step to agree that they stop; between the epochs, of 4 steps, there is a safe point, too
    for size, batch, stop_at, step in ((4, "4", 1, 2), (2, "8", 1, 4), (1, "16", 3, 6)):
        assert job.run(size, batch, stop_at=stop_at) == [85] * size, job.output
        assert job.saved()["step"] == step
    assert job.run(3, "16") == [0] * 3, job.output
    seen, expected = json.loads((tmp_path / "seen").read_text()), straight("sharded", "16")
    assert seen[:6] == expected[:6] and len(expected) == 8
    assert "the data is not what it was when this was saved (global batch was 16 and is 48" in job.output


@pytest.mark.parametrize("kind", ["stream", "replay"])
def test_streams_go_on_where_they_were(trainer, straight, tmp_path, kind):
    if kind == "stream":
        pytest.importorskip("torchdata", reason="needs the extra gpusched[frameworks]")
    expected = straight(kind, "6")
    job = Job(trainer, tmp_path, SCRIPT, tmp_path / "seen", kind, "6")
    for stop in (3, 2, 9):  # twice in the first epoch, once in the second
        job.start(stop_at=stop)
        assert job.wait() == 85, job.output
    job.start()
    assert job.wait() == 0, job.output
    assert json.loads((tmp_path / "seen").read_text()) == expected
    assert ("producing" in job.output) == (kind == "replay")
    assert kind == "stream" or "batches again to skip them, about" in job.output  # it knows from the run that saved


def test_a_data_set_that_has_grown_is_told_or_refused(trainer, tmp_path):
    job = Job(trainer, tmp_path, SCRIPT, tmp_path / "seen", "sharded", "16").start(stop_at=2)
    assert job.wait() == 85, job.output
    job.start("8", POLICY="exact")
    assert job.wait() == 1
    assert "The data is not what it was when this was saved (samples was 64 and is 72)" in job.output
    job.start("8")
    assert job.wait() == 0, job.output
    assert "(samples was 64 and is 72): the run goes on at the same batch" in job.output
