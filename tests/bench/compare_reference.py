"""Compares the simulator with the results of an independent one on public traces, row by row. By hand:

    python tests/bench/compare_reference.py --traces DIR --reference FILE.json [--only NAME,…] [--policies fifo,las,…]
        [--processes 2] [--markdown | --summary]

DIR holds the traces (NAME.csv.gz in the form that docs/simulate.md describes), FILE.json the other simulator's rows:
trace, policy, nodes, gpus_per_node, place, overhead, tick_s, limits, replace, max_jobs, avg_jct_s. Each row is run
with the same settings under the rules that published simulators share (simulator/settings.py: published_rules).
Beside it stand the figures of the daemon's own rules for the same policy, as it would run here. --summary gives one
line per trace, as in docs/policies.md. What happens without durations: compare_unknown.py.
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
    ours = f"{daemon:,.0f} ({_more(found)})"
    cells = (found["trace"], _name(found), f"{found['jobs']:,}", f"{reference:,.0f}", off, ours)
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return f"{cells[0]:26} {cells[1]:24} {cells[2]:>7} {cells[3]:>12} {cells[4]:>10} {cells[5]:>24}"


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """One line per trace: the reference's means, how far ours are off at most, and two policies by our own rules."""
    columns = [("fifo", False), ("sjf", False), ("srtf", True), ("srsf", True), ("las", False), ("las-start", False)]
    traces: dict[tuple[str, int], dict[tuple[str, bool], dict[str, Any]]] = {}
    for row in rows:
        off = None if row["published"] is None else 100 * (row["published"] / row["reference"] - 1)
        traces.setdefault((row["trace"], row["jobs"]), {})[row["policy"], row["replace"]] = row | {"off": off}
    lines = []
    for (trace, jobs), of in traces.items():
        worst = max(abs(row["off"]) for row in of.values() if row["off"] is not None)
        means = [f"{of[column]['reference']:,.0f}" if column in of else "–" for column in columns]
        own = (("easy", False), ("las", False))
        ours = [f"{of[k]['daemon']:,.0f} ({_more(of[k])})" if k in of else "–" for k in own]
        lines.append("| " + " | ".join([trace, f"{jobs:,}", *means, f"{worst:.3f} %", *ours]) + " |")
    offs = [abs(row["off"]) for of in traces.values() for row in of.values() if row["off"] is not None]
    small = sum(off < 0.001 for off in offs)
    lines.append(f"{len(offs)} comparisons; {small} off by less than 0.001 %, most {max(offs):.3f} %")
    lines += ["the daemon's own rules against the reference:"]
    for (trace, jobs), of in traces.items():
        lines.append(f"{trace} {jobs}: " + ", ".join(f"{_name(row)} {_more(row)}" for row in of.values()))
    return lines


def _more(row: dict[str, Any]) -> str:
    return f"{100 * (row['daemon'] / row['reference'] - 1):+.1f} %"


def _name(row: dict[str, Any]) -> str:
    return row["policy"] + (", free moves" if row["replace"] else "") + (", cost" if row["overhead"] != "0" else "")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--traces", required=True)
    options.add_argument("--reference", required=True)
    options.add_argument("--only", default="", help="traces, separated by commas")
    options.add_argument("--policies", default=",".join(NAMES))
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--markdown", action="store_true")
    options.add_argument("--summary", action="store_true", help="one line per trace, when all is done")
    given = options.parse_args()
    rows = [row for row in json.loads(Path(given.reference).read_text()) if row["policy"] in given.policies.split(",")]
    if given.only:
        rows = [row for row in rows if row["trace"] in given.only.split(",")]
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=8) as pool:
        found = []
        for each in pool.imap(one, [(row, given.traces) for row in rows]):
            found.append(each)
            print(line(each, given.markdown), file=sys.stderr if given.summary else sys.stdout, flush=True)
    if given.summary:
        print("\n".join(summary(found)))


if __name__ == "__main__":
    sys.exit(main())
