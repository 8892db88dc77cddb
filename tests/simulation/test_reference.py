"""The engine under the published rules gives what an independent simulator gives, on a small real trace.

tests/data/reference_philly.json holds its results and says how they were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpusched.model.policy import COST_PRESETS, Placement, PolicyName
from gpusched.simulator.settings import FREE, daemon_rules, published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, Outcome
from gpusched.simulator.world import simulate

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "reference_philly.json").read_text(encoding="utf-8"))
FLEET = Fleet(REFERENCE["nodes"], REFERENCE["per_node"])
TRACE = read_trace(DATA / "philly.csv")
NAMES = {"easy": "backfill", "fjf": "fit-first", "las-start": "las"}
ROWS = [row for row in REFERENCE["rows"] if row["policy"] != "easy"]  # ours goes by device, not by count: see below
EASY = next(row for row in REFERENCE["rows"] if row["policy"] == "easy")
SETTING = ("policy", "place", "overhead", "tick_s", "limits", "replace")


def of(row: dict[str, Any]) -> Outcome:
    """The engine's run of the setting of this row."""
    cost = COST_PRESETS.get(row["overhead"], FREE)
    rules = published_rules(
        PolicyName(NAMES.get(row["policy"], row["policy"])),
        placement=Placement(row["place"]),
        cost=cost,
        tick=float(row["tick_s"]),
        las_limits=tuple(map(float, row["limits"] or (18_000.0,))),
        running_first=row["policy"] == "las-start",
        migrate=row["replace"] and row["place"] == "pack",
    )
    return simulate(TRACE, FLEET, rules, cost=cost)


def times(outcome: Outcome) -> list[float]:
    return sorted(fate.ended - fate.job.submit for fate in outcome.fates)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(row[name]) for name in SETTING))
def test_the_published_rules_give_what_the_reference_gives(row: dict[str, Any]) -> None:
    outcome = of(row)
    assert len(outcome.fates) == row["jobs"] == len(TRACE.jobs)
    assert not outcome.unfinished
    took, near = times(outcome), 0.005 if row["policy"].startswith("las") else 0.001
    assert sum(took) / len(took) == pytest.approx(row["mean_s"], rel=near)
    assert took[int(len(took) * 0.99)] == pytest.approx(row["p99_s"], rel=near)
    first = min(fate.job.submit for fate in outcome.fates)
    assert max(fate.ended for fate in outcome.fates) - first == pytest.approx(row["makespan_s"], rel=near)
    if not row["replace"]:  # a move counts as a preemption with us, and not there
        assert sum(fate.preemptions for fate in outcome.fates) == row["preemptions"]


def test_the_default_policy_is_not_worse_than_easy_by_more_than_a_twentieth() -> None:
    outcome = simulate(TRACE, FLEET, daemon_rules(PolicyName.BACKFILL), cost=FREE)
    took = times(outcome)
    assert not outcome.unfinished
    assert sum(took) / len(took) <= 1.05 * EASY["mean_s"]
