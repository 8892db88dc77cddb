"""How long a device stands empty between two jobs, and how long a preemptor waits beyond its victim's own saving.

- end to start: jobs that print the time wait for one device; from the print of one (its last act) to the print of the
  next. What `date` itself needs to start is included.
- preemption: a low job that catches SIGTERM and notes when it was asked and when it left; from the submit of a high job
  to its first action, less the victim's time between the two notes.

Run by hand: python tests/bench/bench_latency.py [rounds].
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from stage import Line, Stage, daemon, job, table, wait_until

DATE = ("/bin/date", "+%s.%N")
VICTIM = """
trap 'asked=$EPOCHREALTIME; kill $!; echo "$asked $EPOCHREALTIME" > "$0.left-$GPUSCHED_ATTEMPT"; exit 85' TERM
sleep 600 & touch "$0.ready-$GPUSCHED_ATTEMPT"; wait
"""


def end_to_start(stage: Stage, rounds: int) -> list[float]:
    """Milliseconds between one job's last act and the next one's first."""
    with stage.client() as client:
        date = job(*DATE, output=str(stage.home / "%j.out"), hold=True)
        keys = [str(client.submit(date)["job"]) for _ in range(rounds)]
        client.act("release", keys)
        wait_until(lambda: not sum(client.status()["jobs"].values()), "the jobs are done", 0.2)
    moments = sorted(float((stage.home / f"{key}.out").read_text()) for key in keys)
    return [(later - earlier) * 1000 for earlier, later in pairwise(moments)]


def bare(rounds: int) -> list[float]:
    """The same without a scheduler: one `date` after the other."""
    moments = [float(subprocess.run(DATE, capture_output=True, check=True).stdout) for _ in range(rounds)]
    return [(later - earlier) * 1000 for earlier, later in pairwise(moments)]


def preemption(stage: Stage, rounds: int) -> list[float]:
    """Milliseconds from the submit of the preemptor to its first action, less the victim's own time."""
    victim = stage.home / "victim"
    victim.write_text(VICTIM)
    waited = []
    with stage.client() as client:
        key = str(client.submit(job("/bin/bash", str(victim), qos="low"))["job"])
        for attempt in range(1, rounds + 1):
            ready, left = (Path(f"{victim}.{what}-{attempt}") for what in ("ready", "left"))
            wait_until(ready.exists, "the victim runs")
            wait_until(lambda: client.job(key)["state"] == "RUNNING", "the victim is known to run")
            time.sleep(0.5)  # what its start has set in motion comes to rest
            begin = time.time()
            high = str(client.submit(job(*DATE, qos="high", output=str(stage.home / "%j.out")))["job"])
            client.wait(high)
            began = float((stage.home / f"{high}.out").read_text())
            asked, gone = (float(word) for word in left.read_text().split())
            waited.append((began - begin - (gone - asked)) * 1000)
        client.act("cancel", [key])
        client.wait(key)
    return waited


def main(rounds: int) -> None:
    with daemon("sim:1x8G") as stage:
        end_to_start(stage, 10)  # warm
        gaps, alone = [], []
        for _ in range(3):
            alone += bare(rounds // 3)
            gaps += end_to_start(stage, rounds // 3)
        waits = preemption(stage, max(5, rounds // 6))
    line = "job's end to the next one's first action"
    spread = f"{median(gaps):.1f} ms (nine of ten under {quantiles(gaps, n=10)[8]:.1f})"
    lines = [
        Line(line, spread, f"one `date` after the other {median(alone):.1f} ms",
             f"{median(gaps) / median(alone):.1f}", "under 15 ms", median(gaps) < 15),
        Line("submit of a preemptor to its first action, less the victim's saving",
             f"{median(waits):.1f} ms (worst {max(waits):.1f})", "", "", "under 100 ms", median(waits) < 100),
    ]  # fmt: skip
    table(f"Latency, medians of {len(gaps)} and {len(waits)}", lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 90)
