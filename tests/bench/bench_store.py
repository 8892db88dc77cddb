"""How fast the durable store is by itself: commits one after the other, and 64 changes sharing each commit.

Against the same number of bare SQLite commits of one small row, on the same disk, interleaved; medians. The pages of a
change are what a job's end writes: its row, its attempt's row and two lines of its story.
Run by hand: python tests/bench/bench_store.py [commits].
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from stage import Line, table

from gpusched.model.changes import Changes, StoryLine
from gpusched.model.job import Attempt, Job, JobSpec, Owner, Request
from gpusched.model.state import JobState
from gpusched.store.sqlite import SqliteStore

IN_FLIGHT = 64


def jobs_of(count: int) -> list[Job]:
    spec = JobSpec(name="true", command=("true",), cwd="/", env_digest="0" * 64, request=Request())
    return [Job(n, Owner(0, 0, "root"), spec, JobState.RUNNING, 1.0, attempt=1) for n in range(1, count + 1)]


def ends(job: Job, at: float) -> Changes:
    """What the end of a job writes."""
    attempt = Attempt(job.id, 1, (), "boot", created=at, created_at=at, ended=at, ended_at=at)
    exited = StoryLine(job.id, 1, at, "exited", "attempt 1: exit code 0")
    completed = StoryLine(job.id, 1, at, "completed", "it ended with exit code 0")
    done = replace(job, state=JobState.COMPLETED, ended_at=at)
    return Changes(jobs=(done,), attempts=(attempt,), story=(exited, completed))


def ours(home: Path, commits: int, together: int) -> float:
    """Changes per second."""
    store = SqliteStore(home / f"ours-{together}-{time.monotonic_ns()}.sqlite", ballast_bytes=0)
    jobs = jobs_of(commits * together)
    store.commit([Changes(jobs=tuple(jobs), environments=(("0" * 64, {}),), next_job_id=len(jobs) + 1)])
    begin = time.perf_counter()
    for first in range(0, len(jobs), together):
        store.commit([ends(job, 2.0) for job in jobs[first : first + together]])
    taken = time.perf_counter() - begin
    store.close()
    return len(jobs) / taken


def bare(home: Path, commits: int) -> float:
    """Commits of one row per second, with the same durability."""
    db = sqlite3.connect(home / f"bare-{time.monotonic_ns()}.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE fact (id INTEGER PRIMARY KEY, text TEXT)")
    begin = time.perf_counter()
    for number in range(commits):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO fact VALUES (?, 'completed')", (number,))
        db.execute("COMMIT")
    taken = time.perf_counter() - begin
    db.close()
    return commits / taken


def main(commits: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="gpusched-bench-"))
    try:
        rates: dict[str, list[float]] = {"bare": [], "alone": [], "together": []}
        for _ in range(3):
            rates["bare"].append(bare(home, commits))
            rates["alone"].append(ours(home, commits, 1))
            rates["together"].append(ours(home, commits // 10, IN_FLIGHT))
        mid = {name: median(values) for name, values in rates.items()}
    finally:
        shutil.rmtree(home)
    against = f"bare SQLite commits {mid['bare']:.0f}/s"
    lines = [
        Line("ends of jobs, one commit each", f"{mid['alone']:.0f}/s", against, f"{mid['alone'] / mid['bare']:.2f}"),
        Line(f"ends of jobs, {IN_FLIGHT} to a commit", f"{mid['together']:.0f}/s", against,
             f"{mid['together'] / mid['bare']:.2f}"),
    ]  # fmt: skip
    table(f"The store alone, medians of 3 times {commits} commits", lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
