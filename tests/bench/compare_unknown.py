"""What the policies do on public traces when nobody gives a duration, against what knowing all of them would bring.

    python tests/bench/compare_unknown.py --traces DIR --reference FILE.json [--only NAME,…] [--processes 2]

The files are those of compare_reference.py. For each trace, by the daemon's own rules and with what the jobs that have
ended in the trace so far say about the others (nothing is known in advance):

- predicted: its mean, and how much it keeps of what SJF and SRTF (which know all durations) gain over FIFO
- backfill: its mean against EASY, which knows all durations, and against first fit in order (fjf), which needs none
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from compare_reference import mean

from gpusched.model.policy import COST_PRESETS, Placement, PolicyName
from gpusched.simulator.settings import FREE, daemon_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet

COST = COST_PRESETS["lucid"]


def one(task: tuple[dict[str, dict[str, Any]], str]) -> str:
    """The line of one trace. rows: the reference's, by policy."""
    rows, folder = task
    row = rows["fifo"]
    workload = read_trace(Path(folder) / f"{row['trace']}.csv.gz")
    fleet, place = Fleet(row["nodes"], row["gpus_per_node"]), Placement(row["place"])
    predicted = mean(workload, fleet, daemon_rules(PolicyName.PREDICTED, cost=COST, placement=place), COST, "unknown")
    backfill = mean(workload, fleet, daemon_rules(PolicyName.BACKFILL, placement=place), FREE, "unknown")
    fifo, sjf, srtf, easy, first_fit = (rows[name]["avg_jct_s"] for name in ("fifo", "sjf", "srtf", "easy", "fjf"))
    cells = [
        row["trace"], f"{predicted:,.0f}",
        f"{100 * (fifo - predicted) / (fifo - sjf):.0f} %", f"{100 * (fifo - predicted) / (fifo - srtf):.0f} %",
        f"{backfill:,.0f}", f"{100 * (backfill / easy - 1):+.1f} %", f"{100 * (backfill / first_fit - 1):+.1f} %",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--traces", required=True)
    options.add_argument("--reference", required=True)
    options.add_argument("--only", default="", help="traces, separated by commas")
    options.add_argument("--processes", type=int, default=2)
    given = options.parse_args()
    of: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads(Path(given.reference).read_text()):
        costly = row["policy"] == "srtf" and row["replace"]  # the one that pays for being moved is what is compared
        if not row.get("max_jobs") and not costly and (not given.only or row["trace"] in given.only.split(",")):
            of.setdefault(row["trace"], {})[row["policy"]] = row
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=4) as pool:
        head = ("trace", "`predicted`", "of SJF's gain", "of SRTF's", "`backfill`", "against EASY", "against first fit")
        print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
        for line in pool.imap(one, [(rows, given.traces) for rows in of.values()]):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
