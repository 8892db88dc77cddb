"""How many `true` jobs per second two simulated devices get through, against loops that do much less.

Baselines, interleaved with the subject in one run, medians of all rounds:
- bare: fork, exec, wait; two processes at a time, nothing kept;
- durable: the same, with one durable SQLite commit (WAL, synchronous=FULL) per "this one ended, the next one starts";
- task-spooler with two slots, if `tsp` is installed: the time from the first submit to the last end, nothing durable.

The subject: jobs that are submitted on hold and released with one request, from the release to the end of the last;
as separate jobs and as one array. Run by hand: python tests/bench/bench_throughput.py [--jobs 500] [--rounds 3].
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from stage import Line, Stage, cpu_seconds, daemon, job, table, wait_until

TRUE = "/bin/true"
SLOTS = 2


def loop(jobs: int, ended: Callable[[int], None]) -> float:
    """Seconds for `jobs` processes, SLOTS at a time. `ended` is told after each end, before the next start."""
    begin = time.perf_counter()
    started = running = 0
    while started < jobs or running:
        if started < jobs and running < SLOTS:
            if (pid := os.fork()) == 0:
                os.execv(TRUE, [TRUE])
            started, running = started + 1, running + 1
            continue
        pid, _ = os.wait()
        running -= 1
        ended(pid)
    return time.perf_counter() - begin


def bare(jobs: int) -> float:
    return jobs / loop(jobs, lambda pid: None)


def durable(jobs: int) -> float:
    """The loop with one commit per end: the row of the job that ended, and of the one that starts."""
    home = Path(tempfile.mkdtemp(prefix="gpusched-bench-"))
    try:
        db = sqlite3.connect(home / "loop.sqlite", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, state TEXT, pid INTEGER, spec TEXT)")
        spec = '{"command": ["true"], "cwd": "/"}'
        rows = [(number, spec) for number in range(1, jobs + SLOTS + 1)]
        db.executemany("INSERT INTO job VALUES (?, 'PENDING', NULL, ?)", rows)
        done = iter(range(1, jobs + 1))

        def ended(pid: int) -> None:
            number = next(done)
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE job SET state = 'COMPLETED', pid = ? WHERE id = ?", (pid, number))
            db.execute("UPDATE job SET state = 'STARTING' WHERE id = ?", (number + SLOTS,))
            db.execute("COMMIT")

        rate = jobs / loop(jobs, ended)
        db.close()
        return rate
    finally:
        shutil.rmtree(home)


def task_spooler(jobs: int) -> float:
    home = Path(tempfile.mkdtemp(prefix="gpusched-bench-"))
    env = {**os.environ, "TS_SOCKET": str(home / "socket"), "TMPDIR": str(home), "TS_MAXFINISHED": str(2 * jobs)}

    def tsp(*words: str) -> str:
        return subprocess.run(["tsp", *words], env=env, capture_output=True, text=True, timeout=100).stdout

    def unfinished() -> bool:
        return any(word in ("queued", "running") for line in tsp().splitlines() for word in line.split()[1:2])

    try:
        tsp("-S", str(SLOTS))
        begin = time.perf_counter()
        for _ in range(jobs):
            tsp("-n", TRUE)
        wait_until(lambda: not unfinished(), "task-spooler is done")
        return jobs / (time.perf_counter() - begin)
    finally:
        tsp("-K")
        shutil.rmtree(home)


def subject(stage: Stage, jobs: int, array: bool) -> float:
    """Jobs per second from the release to the end of the last one, by the daemon's own record of the ends."""
    with stage.client() as client:
        if array:
            keys = [str(client.submit(job(TRUE, hold=True, array=f"1-{jobs}"))["job"])]
        else:
            keys = [str(client.submit(job(TRUE, hold=True))["job"]) for _ in range(jobs)]
        begin = time.time()
        client.act("release", keys)
        wait_until(lambda: not sum(client.status()["jobs"].values()), "the jobs are done", 0.1)
        ended = client.history(keys=keys, limit=jobs)
    assert len(ended) == jobs and all(each["state"] == "COMPLETED" for each in ended), ended[:1]
    return jobs / (max(each["ended_at"] for each in ended) - begin)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    measured: dict[str, list[float]] = {}

    def note(what: str, rate: float) -> None:
        measured.setdefault(what, []).append(rate)

    with daemon("sim:2x8G") as stage:
        subject(stage, 50, array=False)  # warm
        for _ in range(given.rounds):
            note("bare", bare(given.jobs))
            note("durable", durable(given.jobs))
            before = cpu_seconds(stage.family())
            note("jobs", subject(stage, given.jobs, array=False))
            note("cpu", (cpu_seconds(stage.family()) - before) / given.jobs * 1000)
            note("array", subject(stage, given.jobs, array=True))
            if shutil.which("tsp"):
                note("tsp", task_spooler(given.jobs))
    mid = {what: median(rates) for what, rates in measured.items()}
    aim = "at least half"
    lines = [Line("bare fork/exec/wait loop", f"{mid['bare']:.0f}/s"), Line("durable loop", f"{mid['durable']:.0f}/s")]
    for what, words in (("jobs", "gpusched, separate jobs"), ("array", "gpusched, one array")):
        for base, against in (("durable", "durable loop"), ("bare", "bare loop"), ("tsp", "task-spooler")):
            if base not in mid:
                continue
            ratio = mid[what] / mid[base]
            with_aim = base == "durable"
            line = Line(words, f"{mid[what]:.0f}/s", f"{against} {mid[base]:.0f}/s", f"{ratio:.2f}",
                        aim if with_aim else "", ratio >= 0.5 if with_aim else None)  # fmt: skip
            lines.append(line)
    lines.append(Line("the daemon's processor time per job, submit included", f"{mid['cpu']:.1f} ms"))
    table(f"{given.jobs} `true` jobs, {SLOTS} at a time, medians of {given.rounds} rounds", lines)
    if "tsp" not in mid:
        print("task-spooler is not installed: left out (Debian: apt-get install task-spooler)")


if __name__ == "__main__":
    main()
