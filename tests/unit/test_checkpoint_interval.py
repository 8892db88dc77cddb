"""When to save although nobody asked, in virtual time."""

import math
import time

import pytest

from gpusched.checkpoint import Run
from gpusched.checkpoint import interval as rule
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.interval import LONGEST, SHORTEST, Interval


def started(*arguments, **more):
    interval = Interval(*arguments)
    interval.begin(1000.0, **more)
    return interval


def test_by_time_a_save_is_due_when_the_time_has_passed_since_the_last_one():
    interval = started(600.0, None)
    assert not interval.due(1599.0, 7)
    assert interval.due(1600.0, 7)
    interval.saved(1600.0)
    assert not interval.due(2199.0, 8) and interval.due(2200.0, 8)


def test_by_steps_a_save_is_due_at_every_multiple_and_never_by_time():
    interval = started(None, 50)
    assert [step for step in range(1, 151) if interval.due(1e9, step)] == [50, 100, 150]


def test_never_is_never():
    assert not started(None, None).due(1e12, 1)


def test_the_automatic_interval_is_youngs_and_grows_with_what_a_save_costs():
    interval = started("auto", None)
    assert interval.seconds(1000.0) == 60.0  # the first save tells what one costs
    interval.saved(1060.0, cost=0.5)
    assert interval.seconds(1060.0) == pytest.approx(math.sqrt(2 * 0.5 * (60 + 6 * 3600)))
    dear = started("auto", None)
    dear.saved(1060.0, cost=2.0)
    assert dear.seconds(1060.0) == pytest.approx(2 * interval.seconds(1060.0))


def test_ends_that_came_unprepared_make_it_save_more_often_over_attempts():
    calm = started("auto", None, history={"seconds": 7200.0, "unprepared": 0, "cost": 0.5})
    struck = started("auto", None, history={"seconds": 7200.0, "unprepared": 3, "cost": 0.5}, unprepared=True)
    assert struck.seconds(1000.0) == pytest.approx(calm.seconds(1000.0) / math.sqrt(5))
    assert struck.history(1010.0) == {"seconds": 7210.0, "unprepared": 4, "cost": 0.5}


def test_the_automatic_interval_stays_within_bounds():
    cheap, dear = started("auto", None), started("auto", None)
    cheap.saved(1000.0, cost=1e-9)
    dear.saved(1000.0, cost=1e6)
    assert (cheap.seconds(1000.0), dear.seconds(1000.0)) == (SHORTEST, LONGEST)


@pytest.mark.parametrize("arguments", [("often", None), (600.0, 0), (None, -3)])
def test_an_impossible_interval_is_refused_with_what_is_possible(arguments):
    with pytest.raises(CheckpointError, match="Give a number"):
        Interval(*arguments)


def test_a_run_learns_what_a_save_costs_and_how_its_attempts_end(monkeypatch, tmp_path):
    monkeypatch.setattr(rule, "_GUESS", 0.0)  # the first save comes at once
    monkeypatch.setattr(rule, "SHORTEST", 0.0)

    def attempt(ending):
        run, seen = Run(directory=tmp_path, every_seconds="auto", extra={"list": [0.5] * 1000}), []
        for _ in run.epochs(1):
            for number in run.batches(range(20)):
                run.step()
                run._answers.collect(wait=True)
                seen.append(run._interval.history(time.monotonic()))
                if number == ending:
                    return seen, run._interval.seconds(time.monotonic())
        return seen, run._interval.seconds(time.monotonic())

    seen, first = attempt(3)  # left without a save, as after a kill -9
    cost = seen[-1]["cost"]
    assert cost > 0 and seen[-1]["unprepared"] == 0
    assert first == pytest.approx(math.sqrt(2 * cost * rule._PRIOR), rel=0.05)
    seen, second = attempt(None)
    assert seen[0]["unprepared"] == 1
    assert second == pytest.approx(math.sqrt(2 * seen[-1]["cost"] * rule._PRIOR / 2), rel=0.05)
