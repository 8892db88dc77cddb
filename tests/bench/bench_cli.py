"""What a command costs: processor time and wall time of `gpusched submit` and `queue` against `python -c pass`.

In a directory that is in no git work tree: in one, submit also waits for `git status`, which costs what the tree costs.
Interleaved, so that a busy machine slows all alike; medians. Run by hand: python tests/bench/bench_cli.py [rounds].
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from stage import Line, daemon, job, table

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
AIM = 70.0  # ms of processor time above a bare interpreter


def spend(command: list[str], env: dict[str, str], cwd: Path | None = None) -> tuple[float, float]:
    """Milliseconds of wall and of processor time for one command, which must succeed."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, **QUIET)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return wall * 1000, (used.ru_utime + used.ru_stime) * 1000


def main(rounds: int) -> None:
    gpusched = str(Path(sys.executable).with_name("gpusched"))
    with daemon("sim:2x8G") as stage, stage.client() as client:
        for _ in range(20):
            client.submit(job("sleep", "600"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "gpusched submit --hold true": [gpusched, "submit", "--hold", "--output", "/dev/null", "true"],
            "gpusched queue": [gpusched, "queue"],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(rounds + 2):
            for name, command in commands.items():
                cost = spend(command, stage.environment, stage.home)
                if number >= 2:  # the first ones warm the page cache
                    taken[name].append(cost)
    base_wall, base_cpu = (median(values) for values in zip(*taken["python -c pass"], strict=True))
    lines = []
    for name, values in taken.items():
        wall, cpu = (median(column) for column in zip(*values, strict=True))
        if name == "python -c pass":
            lines.append(Line(name, f"{cpu:.0f} ms of processor, {wall:.0f} ms wall"))
            continue
        above = cpu - base_cpu
        against = f"+{above:.0f} ms of processor, +{wall - base_wall:.0f} ms wall"
        figure = f"{cpu:.0f} ms of processor, {wall:.0f} ms wall"
        lines.append(Line(name, figure, against, f"{cpu / base_cpu:.1f}", f"within {AIM:.0f} ms", above <= AIM))
    table(f"Commands with 20 jobs in the queue, medians of {rounds}", lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
