"""Compares the simulator with the results of an independent one on public traces, row by row. By hand:

    python tests/bench/compare_reference.py --traces DIR --reference FILE.json [--only NAME,…] [--policies fifo,las,…]
        [--processes 2] [--markdown]

DIR holds the traces (NAME.csv.gz in the form that docs/simulate.md describes), FILE.json the other simulator's rows:
trace, policy, nodes, gpus_per_node, place, overhead, tick_s, limits, replace, max_jobs, avg_jct_s. Each row is run
with the same settings under the rules that published simulators share (simulator/settings.py: published_rules).
Beside it stand the figures of the daemon's own rules for the same policy, as it would run here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from gpusched.model.policy import COST_PRESETS, Placement, PolicyName, PreemptCost
from gpusched.model.rules import Rules
from gpusched.simulator.settings import FREE, daemon_rules, published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, Workload
from gpusched.simulator.world import simulate

# The names that the other simulator gives its policies, and ours. What it calls fjf and easy are not the same rules
# as fit-first (bypass limit) and backfill (by device, shortest first): they are shown for what they are.
NAMES = {
    "fifo": "fifo", "sjf": "sjf", "srtf": "srtf", "srsf": "srsf", "las": "las", "las-start": "las", "easy": "backfill",
}  # fmt: skip


def settings(row: dict[str, Any]) -> tuple[dict[str, Any], PreemptCost]:
    """What a row asks for, as changes of the rules, and what being moved costs."""
    cost = COST_PRESETS.get(row["overhead"]) or (FREE if float(row["overhead"]) == 0 else _flat(float(row["overhead"])))
    changes: dict[str, Any] = {"placement": Placement(row["place"]), "cost": cost}
    if row["limits"]:
        changes["las_limits"] = tuple(float(limit) for limit in row["limits"])
    return changes, cost


def _flat(seconds: float) -> PreemptCost:
    return PreemptCost(seconds, seconds, seconds)


def as_published(row: dict[str, Any], changes: dict[str, Any]) -> Rules | None:
    if row["policy"] == "easy":
        return None
    return published_rules(
        PolicyName(NAMES[row["policy"]]),
        tick=float(row["tick_s"]),
        migrate=bool(row["replace"]),
        running_first=row["policy"] == "las-start",
        **changes,
    )


def one(task: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """Both figures for one row."""
    row, folder = task
    workload = read_trace(Path(folder) / f"{row['trace']}.csv.gz", max_jobs=row.get("max_jobs"))
    fleet = Fleet(row["nodes"], row["gpus_per_node"])
    changes, cost = settings(row)
    began = time.process_time()
    published = as_published(row, changes)
    own = daemon_rules(PolicyName(NAMES[row["policy"]]), **changes)
    return {
        **{name: row[name] for name in ("trace", "policy", "overhead", "replace", "place", "tick_s")},
        "jobs": row["jobs"],
        "reference": row["avg_jct_s"],
        "published": mean(workload, fleet, published, cost) if published is not None else None,
        "daemon": mean(workload, fleet, own, cost, "unknown" if row["policy"].startswith("las") else "given"),
        "cpu_s": time.process_time() - began,
    }


def mean(workload: Workload, fleet: Fleet, rules: Rules, cost: PreemptCost, durations: str = "given") -> float:
    """Mean completion time, seconds. A run that does not finish every job is no result."""
    outcome = simulate(workload, fleet, rules, durations=durations, cost=cost)
    assert not outcome.unfinished, f"{workload.source}, {outcome.policy}: {len(outcome.unfinished)} jobs never ended"
    return sum(fate.ended - fate.job.submit for fate in outcome.fates) / len(outcome.fates)


def line(found: dict[str, Any], markdown: bool) -> str:
    reference, published, daemon = found["reference"], found["published"], found["daemon"]
    off = "" if published is None else f"{100 * (published / reference - 1):+.3f} %"
    how = found["policy"] + (", free moves" if found["replace"] else "")
    how += f", {found['overhead']} cost" if found["overhead"] != "0" else ""
    ours = f"{daemon:,.0f} ({100 * (daemon / reference - 1):+.1f} %)"
    cells = (found["trace"], how, f"{found['jobs']:,}", f"{reference:,.0f}", off, ours)
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return f"{cells[0]:26} {cells[1]:24} {cells[2]:>7} {cells[3]:>12} {cells[4]:>10} {cells[5]:>24}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--traces", required=True)
    options.add_argument("--reference", required=True)
    options.add_argument("--only", default="", help="traces, separated by commas")
    options.add_argument("--policies", default=",".join(NAMES))
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--markdown", action="store_true")
    given = options.parse_args()
    rows = [row for row in json.loads(Path(given.reference).read_text()) if row["policy"] in given.policies.split(",")]
    if given.only:
        rows = [row for row in rows if row["trace"] in given.only.split(",")]
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=8) as pool:
        for found in pool.imap(one, [(row, given.traces) for row in rows]):
            print(line(found, given.markdown), flush=True)


if __name__ == "__main__":
    sys.exit(main())
