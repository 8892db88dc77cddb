"""What the daemon costs while nothing happens: processor time with eight simulated devices sampled each second.

With no job, and with eight sleeping ones. Counted are the daemon and its helpers; in the second case the supervisors
are shown apart. The cost of simulated devices grows with the number of processes on the machine, so that number is
printed too. Run by hand: python tests/bench/bench_idle.py [seconds].
"""

from __future__ import annotations

import os
import sys
import time

from stage import Line, Stage, cpu_seconds, daemon, job, stat_of, table, wait_until

AIM = 0.5  # percent of a core


def percent(stage: Stage, seconds: float) -> tuple[float, float]:
    """Percent of a core that the daemon with its helpers, and the supervisors, use."""
    family, supervisors = stage.family(), supervisors_of(stage)
    begin, used, theirs = time.monotonic(), cpu_seconds(family), cpu_seconds(supervisors)
    time.sleep(seconds)
    span = time.monotonic() - begin
    return 100 * (cpu_seconds(family) - used) / span, 100 * (cpu_seconds(supervisors) - theirs) / span


def supervisors_of(stage: Stage) -> list[int]:
    family = set(stage.family())
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    parents = {pid: int(fields[1]) for pid in pids if (fields := stat_of(pid))}
    return [pid for pid, parent in parents.items() if parent in family and pid not in family]


def main(seconds: float) -> None:
    with daemon("sim:8x8G") as stage, stage.client() as client:
        time.sleep(12)  # past the youth of everything that simulated devices look at more often
        idle, _ = percent(stage, seconds)
        for _ in range(8):
            client.submit(job("sleep", "600"))
        wait_until(lambda: client.status()["jobs"]["running"] == 8, "eight jobs run")
        time.sleep(12)
        busy, supervisors = percent(stage, seconds)
        processes = sum(name.isdigit() for name in os.listdir("/proc"))
    lines = [
        Line("daemon and helpers, nothing runs", f"{idle:.2f} % of a core", "", "", f"under {AIM} %", idle < AIM),
        Line("daemon and helpers, 8 sleeping jobs", f"{busy:.2f} % of a core", "", "", f"under {AIM} %", busy < AIM),
        Line("the 8 supervisors together", f"{supervisors:.2f} % of a core"),
        Line("processes on the machine", str(processes)),
    ]
    table(f"Idle, 8 simulated devices sampled each second, over {seconds:.0f} s each", lines)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
