"""A time limit that would pass before the next safe point: told at the previous one, where the run is saved."""

import time

import pytest

from gpusched.checkpoint import Run, list_checkpoints
from gpusched.checkpoint.disk import files
from gpusched.checkpoint.frameworks.attempt import Attempt
from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.leave import Termination
from gpusched.checkpoint.mailbox import Mailbox
from gpusched.checkpoint.ranks.group import ALONE
from gpusched.checkpoint.safepoint import Count, SafePoints
from gpusched.checkpoint.timelimit import TimeLimit


@pytest.fixture
def told():
    return []


def test_it_is_told_once_at_the_last_safe_point_that_may_come_in_time(told):
    limit = TimeLimit(1000.0, 60.0, told.append)
    assert not any(limit.near(now) for now in (0.0, 100.0, 110.0, 210.0, 300.0, 400.0))
    assert told == []
    assert limit.near(910.0)
    assert "the time limit is in 90 s, and safe points were up to 510 s apart" in told[0] and "run.check()" in told[0]
    assert not limit.near(990.0) and len(told) == 1


def test_safe_points_within_the_grace_period_need_no_word(told):
    limit = TimeLimit(1000.0, 60.0, told.append)
    assert not any(limit.near(float(now)) for now in range(0, 1100, 50)) and told == []


def test_the_time_before_the_first_safe_point_is_no_measure(told):
    limit = TimeLimit(1000.0, 60.0, told.append)
    assert not limit.near(900.0) and not limit.near(950.0) and told == []


@pytest.mark.parametrize(("end", "grace"), [("", "60"), ("soon", "60"), ("0", ""), ("1", "much")])
def test_without_a_limit_or_a_grace_period_nothing_is_told(monkeypatch, told, end, grace):
    monkeypatch.setenv("GPUSCHED_END_TIME", end)
    monkeypatch.setenv("GPUSCHED_GRACE_SECONDS", grace)
    limit = TimeLimit.from_environment(told.append)
    assert not any(limit.near(now) for now in (0.0, 1e3, 1e9)) and told == []


@pytest.mark.parametrize("kind", ["step", "micro_step", "check", "epoch"])
def test_any_safe_point_saves_then(tmp_path, told, kind):
    limit = TimeLimit(1000.0, 60.0, told.append)
    points = SafePoints(Mailbox(None, 0), Termination(), Interval(None, None), ALONE, Count(), limit)
    assert points.arrive(0.0, 1, kind, True) is None and points.arrive(100.0, 2, kind, True) is None
    decision = points.arrive(950.0, 3, kind, True)
    assert decision is not None and not decision.stop and decision.request is None
    assert points.arrive(960.0, 4, kind, True) is None


def ends_in(monkeypatch, seconds):
    monkeypatch.setenv("GPUSCHED_END_TIME", str(time.time() + seconds))
    monkeypatch.setenv("GPUSCHED_GRACE_SECONDS", "0")


def test_a_run_saves_and_says_so(monkeypatch, tmp_path):
    ends_in(monkeypatch, -1.0)  # with no patience at all, the second safe point is the one
    run = Run(directory=tmp_path, every_seconds=None)
    for _ in run.epochs(1):
        for number in run.batches(range(4)):
            run.step()
            if number == 2:
                break
    assert [line for line in run.report if line.startswith("the time limit is in 0 s")]
    assert list_checkpoints(str(tmp_path))[0].step == 2


def test_an_adapter_saves_and_says_so(monkeypatch, tmp_path):
    ends_in(monkeypatch, -1.0)
    attempt = Attempt(str(tmp_path), 3, None, None)
    attempt.begin()
    try:
        assert attempt.asked() is None
        request = attempt.asked()
        assert request is not None and not request.stop and attempt.report[0].startswith("the time limit is in 0 s")
        assert attempt.asked() is request  # inside an evaluation, say: until it is served
        checkpoint = files.publish(str(tmp_path), 2, lambda folder: None, {})
        attempt.serve(request, lambda: checkpoint)
        assert attempt.asked() is None and attempt.report[1].startswith("saved step-2")
    finally:
        attempt.end()
