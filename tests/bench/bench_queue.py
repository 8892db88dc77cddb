"""Ten thousand waiting jobs on eight devices: the `queue` command, submits, and the daemon's memory.

Once as an array, once as separate submits by several clients at a time; each with a daemon of its own. The scheduling
cycle alone, without a daemon, is measured by bench_cycle.py. Run by hand: python tests/bench/bench_queue.py [jobs].
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

from stage import Line, Stage, daemon, job, memory_mib, table

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
DEVICES = 8
CLIENTS = 4
SETTLED = 1.5  # seconds after which the daemon has given back what a large answer took


def fill_with_array(stage: Stage, jobs: int) -> None:
    with stage.client() as client:
        client.submit(job("sleep", "600", array=f"1-{jobs}"))


def fill_one_by_one(stage: Stage, jobs: int) -> None:
    def some(count: int) -> None:
        with stage.client() as client:
            for _ in range(count):
                client.submit(job("sleep", "600"))

    threads = [threading.Thread(target=some, args=(jobs // CLIENTS,)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wall_ms(command: list[str], stage: Stage, rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(command, env=stage.environment, check=True, timeout=60, **QUIET)
        taken.append((time.perf_counter() - begin) * 1000)
    return median(taken)


def measure(how: str, jobs: int) -> list[Line]:
    gpusched = str(Path(sys.executable).with_name("gpusched"))
    with daemon(f"sim:{DEVICES}x8G") as stage, stage.client() as client:
        empty = memory_mib(stage.process.pid, "Pss")
        for _ in range(DEVICES):
            client.submit(job("sleep", "600"))
        begin = time.perf_counter()
        (fill_with_array if how == "one array" else fill_one_by_one)(stage, jobs)
        taken = time.perf_counter() - begin
        bare = wall_ms([sys.executable, "-c", "pass"], stage, 5)
        queue = wall_ms([gpusched, "queue"], stage, 5)
        time.sleep(SETTLED)
        pss, rss = memory_mib(stage.process.pid, "Pss"), memory_mib(stage.process.pid, "Rss")
        print_all = wall_ms([gpusched, "queue", "--json"], stage, 3)
        begin = time.perf_counter()
        waiting = len(client.jobs(states=["PENDING"]))
        answer = (time.perf_counter() - begin) * 1000
        assert waiting == jobs, waiting
        time.sleep(SETTLED)
        later = memory_mib(stage.process.pid, "Pss")
    return [
        Line(f"submitting {jobs} jobs ({how})", f"{taken:.1f} s, {jobs / taken:.0f}/s"),
        Line("`gpusched queue`", f"{queue:.0f} ms", f"python -c pass {bare:.0f} ms", f"{queue / bare:.1f}",
             "under 300 ms", queue < 300),
        Line("`gpusched queue --json`", f"{print_all:.0f} ms", f"python -c pass {bare:.0f} ms",
             f"{print_all / bare:.1f}"),
        Line("the whole list through the API, every field", f"{answer:.0f} ms"),
        Line("daemon's memory, shared pages divided (PSS)", f"{pss:.0f} MiB", f"without jobs {empty:.0f} MiB",
             f"{pss / empty:.1f}", "under 80 MB", pss * 1.048576 < 80),
        Line("the same, shared pages in full (RSS)", f"{rss:.0f} MiB", "", "", "under 80 MB", rss * 1.048576 < 80),
        Line("the same (PSS), after lists with every field", f"{later:.0f} MiB", f"without jobs {empty:.0f} MiB",
             f"{later / empty:.1f}"),
    ]  # fmt: skip


def main(jobs: int) -> None:
    for how in ("one array", f"{CLIENTS} clients, one by one"):
        table(f"{jobs} waiting jobs on {DEVICES} devices: {how}", measure(how, jobs))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
