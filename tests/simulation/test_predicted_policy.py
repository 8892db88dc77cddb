"""The policy `predicted` on a real trace: it keeps most of what knowing all run times would bring, and never peeks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpusched.model.policy import COST_PRESETS, PolicyName
from gpusched.model.rules import Rules
from gpusched.simulator.settings import daemon_rules, published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, Outcome, Workload
from gpusched.simulator.world import simulate

TRACE = read_trace(Path(__file__).parents[1] / "data" / "philly.csv")
FIRST = replace(TRACE, jobs=TRACE.jobs[:120])
FLEET = Fleet(1, 8)
COST = COST_PRESETS["lucid"]


def run(workload: Workload, rules: Rules, durations: str = "unknown") -> Outcome:
    outcome = simulate(workload, FLEET, rules, durations=durations, cost=COST)
    assert not outcome.unfinished
    return outcome


def mean(outcome: Outcome) -> float:
    return sum(fate.ended - fate.job.submit for fate in outcome.fates) / len(outcome.fates)


@pytest.mark.parametrize("rules", [daemon_rules, published_rules])
def test_predictions_keep_most_of_what_knowing_all_run_times_brings(rules: Callable[..., Rules]) -> None:
    first_come = mean(run(TRACE, published_rules(PolicyName.FIFO)))
    oracle = mean(run(TRACE, published_rules(PolicyName.SJF), "given"))
    found = mean(run(TRACE, rules(PolicyName.PREDICTED, cost=COST)))
    assert oracle < 0.5 * first_come, "there is something to gain"
    assert first_come - found >= 0.6 * (first_come - oracle)


def test_it_makes_no_difference_whether_run_times_are_told() -> None:
    rules = daemon_rules(PolicyName.PREDICTED, cost=COST)
    assert run(FIRST, rules).fates == run(FIRST, rules, "given").fates


def test_what_happens_later_changes_nothing_before() -> None:
    rules = daemon_rules(PolicyName.PREDICTED, cost=COST)
    as_it_was = run(FIRST, rules)
    moment = sorted(fate.ended for fate in as_it_was.fates)[len(as_it_was.fates) // 2]
    end = {fate.job.id: fate.ended for fate in as_it_was.fates}
    longer = tuple(job if end[job.id] <= moment else replace(job, duration=3 * job.duration) for job in FIRST.jobs)
    otherwise = run(replace(FIRST, jobs=longer), rules)
    assert _starts(as_it_was, moment) == _starts(otherwise, moment)
    assert _starts(as_it_was, float("inf")) != _starts(otherwise, float("inf"))


def _starts(outcome: Outcome, until: float) -> dict[str, float]:
    return {fate.job.id: fate.started for fate in outcome.fates if fate.started <= until}
