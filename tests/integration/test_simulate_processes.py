"""Policies in processes of their own: what goes wrong there comes through, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from gpusched.model.errors import Refused
from gpusched.model.policy import PolicyName
from gpusched.simulator.compare import Setting, compare
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.settings import FREE, published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, TraceJob, Workload

PHILLY = read_trace(Path(__file__).parents[1] / "data" / "philly.csv")
RULES = [published_rules(name) for name in (PolicyName.FIFO, PolicyName.SJF, PolicyName.SRTF)]


def test_outcomes_come_in_the_order_that_was_asked_for() -> None:
    setting = Setting(PHILLY, Fleet(2, 8), "given", FREE, timeline=True)
    told: list[tuple[str, int, int]] = []
    outcomes = list(compare(setting, RULES, lambda *word: told.append(word), 2))
    assert [outcome.policy for outcome in outcomes] == ["fifo", "sjf", "srtf"]
    assert all(len(outcome.fates) == 400 and outcome.spans for outcome in outcomes)
    assert {of for _, _, of in told} <= {400}
    assert not multiprocessing.active_children()


def test_what_a_process_raises_comes_through_and_ends_the_others() -> None:
    large = Workload("w", (TraceJob("large", 0.0, 9, 1.0),))
    with pytest.raises(Refused, match="the simulated machine refuses a job"):
        list(compare(Setting(large, Fleet(1, 8), "given", FREE), RULES, lambda *word: None, 3))
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_named() -> None:
    many = Workload("w", tuple(TraceJob(str(n), float(n), 1, 300.0) for n in range(20_000)))
    outcomes = compare(Setting(many, Fleet(1, 8), "given", FREE), RULES[:2], kill_all, 2)
    with pytest.raises(SimulationError, match=r"(fifo|sjf): its process ended in the middle \(exit code -9\)"):
        list(outcomes)
    assert not multiprocessing.active_children()


def kill_all(*word: object) -> None:
    for child in multiprocessing.active_children():
        child.kill()
