"""Two accounts share a machine by checkpoint and resume, with the real daemon, real training and a real clock."""

from __future__ import annotations

import sys
from pathlib import Path

from daemons import JOBS, a_daemon, until

LAS = '[policy]\nname = "las"\ntick = "1s"\nmin_run = "1s"\npreempt_cost = "1s"\n'


def test_who_has_more_than_its_part_leaves_for_another_account_and_ends_with_the_same_bits(tmp_path, zygote):
    train = [sys.executable, str(JOBS / "train_mlp.py"), "--epochs", "2", "--samples", "512", "--slow-ms", "150"]
    env = {"PYTHONPATH": str(JOBS.parent), "OMP_NUM_THREADS": "1"}
    with a_daemon(tmp_path / "p", zygote, config=LAS) as place:
        ours = [place.submit(*train, "--out", f"{n}.json", account="vision", env=env) for n in (0, 1)]
        folders = [Path(place.running(key)["job_dir"]) for key in ours]
        until(lambda: all((folder / "progress.jsonl").exists() for folder in folders), lambda: place.output(ours[0]))
        theirs = place.sh("sleep 1", account="speech")
        assert place.ended(theirs)["state"] == "COMPLETED"
        jobs = [place.ended(key) for key in ours]
        assert [job["state"] for job in jobs] == ["COMPLETED", "COMPLETED"], [place.story(key) for key in ours]
        assert sorted(job["attempt"] for job in jobs) == [1, 2], [place.story(key) for key in ours]
        moved = next(job for job in jobs if job["attempt"] == 2)
        assert any(f"preempted for job {theirs}" in line for line in place.story(moved["job"]))
        results = [Path(place.work, f"{n}.json").read_text() for n in (0, 1)]
        assert results[0] == results[1]  # the one that was moved and the one that was not: bit for bit
