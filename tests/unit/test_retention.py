"""What is removed so that a disk does not fill: old directories, and all but the end of outputs past their limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpusched.daemon.places import Places
from gpusched.daemon.retention import cut_outputs, remove_old
from gpusched.model.job import Job, JobSpec, Owner
from gpusched.model.state import JobState

MIB = 1024 * 1024


def a_job(cwd: Path, **spec: str) -> Job:
    me = Owner(os.getuid(), os.getgid(), "me")
    return Job(7, me, JobSpec(("x",), str(cwd), name="x", **spec), JobState.RUNNING, 0.0)


def test_an_output_past_its_limit_is_cut_to_its_end_and_the_job_goes_on_behind_it(tmp_path):
    path = tmp_path / "out-7"
    with open(path, "ab", buffering=0) as job_writes:
        job_writes.write(b"old\n" * MIB + b"the last line\n")
        size = path.stat().st_size
        assert cut_outputs([a_job(tmp_path, output="out-%j")], 2) == [str(path)]
        job_writes.write(b"a new line\n")
    text = path.read_bytes()
    assert f"had {size} bytes and was cut to its end".encode() in text.splitlines()[0]
    assert text.endswith(b"the last line\na new line\n") and len(text) < 2 * MIB
    assert cut_outputs([a_job(tmp_path, output="out-%j")], 2) == []


def test_only_a_regular_file_past_its_limit_is_cut(tmp_path):
    (tmp_path / "small").write_bytes(b"x" * MIB)
    (tmp_path / "precious").write_bytes(b"x" * 2 * MIB)
    (tmp_path / "link").symlink_to("precious")
    os.mkfifo(tmp_path / "fifo")
    jobs = [a_job(tmp_path, output=name) for name in ("small", "link", "fifo", "gone")]
    assert cut_outputs([*jobs, a_job(tmp_path, output="small", error="link")], 1) == []
    assert (tmp_path / "precious").stat().st_size == 2 * MIB


@pytest.mark.parametrize("kind", ["jobs", "checkpoints"])
def test_only_old_directories_of_jobs_that_are_over_are_removed(tmp_path, kind):
    for name, age in (("1", 100), ("2", 100), ("3", 10), ("4", 100), ("notes", 100)):
        directory = tmp_path / kind / name
        directory.mkdir(parents=True)
        (directory / "weights").touch()
        for path in (directory / "weights", directory):
            os.utime(path, (1000 - age, 1000 - age))
    os.utime(tmp_path / kind / "4" / "weights", (990, 990))  # written to since
    history, checkpoints = (950.0, 0.0) if kind == "jobs" else (0.0, 950.0)
    removed = remove_old(Places(tmp_path), frozenset({2}), history_before=history, checkpoints_before=checkpoints)
    assert removed == 1
    assert sorted(os.listdir(tmp_path / kind)) == ["2", "3", "4", "notes"]
