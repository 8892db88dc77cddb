"""What the adapters of frameworks share: requests, sealed directories, finding the newest checkpoint. No framework."""

import json
import os

import pytest

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.frameworks import folder, sealed
from gpusched.checkpoint.frameworks.attempt import Attempt

FILE = "framework.ckpt"


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The job directory of an attempt under gpusched."""
    job = tmp_path / "job"
    job.mkdir()
    monkeypatch.setenv("GPUSCHED_JOB_DIR", str(job))
    monkeypatch.setenv("GPUSCHED_ATTEMPT", "3")
    return job


def ask(job, what, **more):
    (job / "request").write_text(json.dumps({"ask": what, "seq": 1, **more}))


def tree(step):
    position = {"steps": step, "epoch": 1, "batch": 2}
    return {"shared": {"position": position, "seed": 5}, "own": {"kind": "batch"}}


def saver(directory, step=7):
    def write(place):
        with open(os.path.join(place, FILE), "wb") as file:
            file.write(b"weights")

    return lambda: folder.publish(str(directory), "lightning", write, tree(step), {})


def test_outside_gpusched_nothing_is_asked_and_nothing_told(monkeypatch, capsys):
    monkeypatch.delenv("GPUSCHED_JOB_DIR", raising=False)
    attempt = Attempt(None, 3, 600.0, 1)
    attempt.begin()
    assert attempt.asked() is None
    assert not attempt.due(1)
    attempt.end()
    assert capsys.readouterr().err == ""


def test_inside_without_a_directory_it_says_so(inside, capsys):
    attempt = Attempt(None, 3, 600.0, None)
    attempt.begin()
    attempt.begin()
    attempt.end()
    assert capsys.readouterr().err.count("no checkpoint directory is set: this job cannot save itself") == 1
    assert not (inside / "watching").exists()


def test_a_request_to_save_is_served_at_its_safe_point_and_acknowledged(inside, tmp_path):
    attempt = Attempt(str(tmp_path / "ckpt"), 3, None, None)
    attempt.begin()
    assert (inside / "watching").exists()
    ask(inside, "save", safe_point=2)
    assert attempt.asked() is None
    request = attempt.asked()
    attempt.serve(request, saver(tmp_path / "ckpt"))
    saved = json.loads((inside / "saved").read_text())
    assert (saved["attempt"], saved["step"]) == (3, 7)
    assert files.examine(saved["checkpoint"]).good
    assert attempt.asked() is None  # answered once
    attempt.end()
    assert not (inside / "watching").exists()


def test_a_save_that_fails_is_told_and_training_goes_on(inside, tmp_path, capsys):
    def fail():
        raise OSError(28, "No space left on device")

    attempt = Attempt(str(tmp_path / "ckpt"), 3, None, None)
    attempt.begin()
    ask(inside, "save")
    attempt.serve(attempt.asked(), fail)
    attempt.end()
    assert not (inside / "saved").exists()
    assert "CANNOT SAVE a checkpoint" in capsys.readouterr().err


def test_saves_that_nobody_asked_for_come_by_steps(tmp_path):
    attempt = Attempt(str(tmp_path / "ckpt"), 3, None, 4)
    attempt.begin()
    assert [step for step in range(1, 10) if attempt.due(step)] == [4, 8]
    attempt.end()


def test_two_attempts_do_not_save_into_one_directory(tmp_path):
    first, second = (Attempt(str(tmp_path / "ckpt"), 3, None, None) for _ in range(2))
    first.claim()
    with pytest.raises(CheckpointError):
        second.claim()
    first.end()
    second.claim()
    second.end()


def test_several_processes_are_refused_with_a_way_out(tmp_path):
    attempt = Attempt(str(tmp_path / "ckpt"), 3, None, None)
    attempt.refuse_several_processes(1, "")
    with pytest.raises(CheckpointError, match="2 processes") as refused:
        attempt.refuse_several_processes(2, "Write the loop with Run.")
    assert "Write the loop with Run." in refused.value.hint


def test_the_newest_good_checkpoint_is_found_and_torn_ones_are_told(tmp_path):
    told = []
    assert folder.newest(str(tmp_path / "none"), FILE, told.append) is None
    for step in (3, 5):
        saver(tmp_path, step)()
    with open(tmp_path / "step-5" / FILE, "ab") as file:
        file.write(b"more")
    found = folder.newest(str(tmp_path), FILE, told.append)
    assert (found.step, found.epoch, found.batch) == (3, 1, 2)
    assert folder.read(found.path)["own"] == {"kind": "batch"}
    assert told == [f"skipping checkpoint step-5: {FILE} has 11 bytes instead of 7"]


def test_only_torn_checkpoints_or_another_frameworks_start_nothing_over(tmp_path):
    told = []
    saver(tmp_path)()
    with pytest.raises(CheckpointError, match="None of the 1 checkpoint"):
        folder.newest(str(tmp_path), "other.ckpt", told.append)
    assert told == ["skipping checkpoint step-7: it was written by lightning and has no other.ckpt"]


def test_a_framework_that_writes_a_directory_is_refused_and_nothing_remains(tmp_path):
    with pytest.raises(CheckpointError, match="wrote a directory"):
        folder.publish(str(tmp_path), "lightning", lambda place: os.mkdir(f"{place}/shards"), tree(1), {})
    assert [name for name in os.listdir(tmp_path) if name.startswith((".tmp", "step"))] == []


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint-4"
    (path / "inner").mkdir(parents=True)
    (path / "weights").write_bytes(b"weights")
    (path / "inner" / "optimizer.pt").write_bytes(b"moments")
    return path


def test_a_sealed_directory_is_good_until_any_byte_changes(checkpoint):
    assert "it has no seal" in sealed.problem(str(checkpoint))
    assert sealed.seal(str(checkpoint), {"step": 4}) == 14
    assert sealed.problem(str(checkpoint)) == ""
    assert sealed.about(str(checkpoint))["step"] == 4
    (checkpoint / "inner" / "optimizer.pt").write_bytes(b"Moments")
    assert "inner/optimizer.pt is damaged" in sealed.problem(str(checkpoint))


def test_what_is_unsealed_or_has_another_manifest_does_not_count(checkpoint):
    sealed.seal(str(checkpoint), {"step": 4})
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(dict(manifest, step=5)))
    assert sealed.problem(str(checkpoint)) == "its manifest is damaged"
    sealed.unseal(str(checkpoint))
    sealed.unseal(str(checkpoint))
    assert "it has no seal" in sealed.problem(str(checkpoint))
    sealed.seal(str(checkpoint), {"step": 4})
    assert sealed.problem(str(checkpoint)) == ""
