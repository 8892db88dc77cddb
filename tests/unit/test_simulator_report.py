"""Figures of a run, by hand: times, use of devices, what preemptions cost, and finish-time fairness."""

from __future__ import annotations

from pathlib import Path

import pytest
from fates import a_fate, an_outcome, in_order
from hypothesis import given
from hypothesis import strategies as st

from gpusched.simulator import fairness
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.report import completion_curve, report
from gpusched.simulator.steps import Steps
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, TraceJob

DATA = Path(__file__).parents[1] / "data" / "philly.csv"


def test_times_and_use_are_those_of_the_jobs() -> None:
    run = report(an_outcome(a_fate(0, 0, 10, 4), a_fate(0, 10, 30, 2), a_fate(5, 10, 15, 1), devices=4))
    assert (run.jobs, run.mean_completion_s, run.median_completion_s) == (3, 50 / 3, 10.0)
    assert (run.p99_completion_s, run.makespan_s) == (30.0, 30.0)
    assert (run.mean_wait_s, run.mean_first_wait_s) == (5.0, 5.0)
    assert run.utilization == pytest.approx((40 + 40 + 5) / (30 * 4))
    assert (run.preemptions, run.lost_gpu_s, run.lost_share) == (0, 0.0, 0.0)


def test_percentiles_are_elements_as_the_reference_takes_them() -> None:
    run = report(an_outcome(*(a_fate(0, 0, seconds) for seconds in range(1, 201)), devices=200))
    assert run.median_completion_s == 101.0  # sorted[n // 2]
    assert run.p99_completion_s == 199.0  # sorted[int(n * 0.99)]


def test_what_preemptions_cost_is_in_the_wait_and_told_apart() -> None:
    moved = a_fate(0, 0, 100, 2, 60.0, preemptions=2, lost=30.0)
    run = report(an_outcome(moved, a_fate(0, 0, 10, 1)))
    assert (run.preemptions, run.jobs_preempted) == (2, 1)
    assert run.mean_wait_s == 20.0 and run.mean_first_wait_s == 0.0
    assert run.lost_gpu_s == 30.0
    assert run.lost_share == pytest.approx(30 / (120 + 30 + 10))


def test_a_run_with_unfinished_jobs_is_an_error_that_names_them() -> None:
    left = tuple(TraceJob(f"left{number}", 0.0, 1, 5.0) for number in range(7))
    with pytest.raises(SimulationError) as caught:
        report(an_outcome(a_fate(0, 0, 1), unfinished=left, policy="las"))
    assert "las: 7 of 8 jobs did not finish (left0, left1, left2, left3, left4, …)" in caught.value.message
    with pytest.raises(SimulationError, match="there was no job"):
        report(an_outcome())


def test_alone_on_the_machine_every_job_is_treated_fairly() -> None:
    run = report(an_outcome(a_fate(0, 0, 100, 4), a_fate(200, 200, 300, 1)))
    assert (run.worst_rho, run.mean_rho, run.unfair_share) == (1.0, 1.0, 0.0)


def test_who_waits_for_an_equal_took_longer_than_a_fair_share() -> None:
    # Two jobs that want the whole machine: each is entitled to half of it, so to twice its duration while both live.
    first, second = a_fate(0, 0, 100, 4, job="first"), a_fate(0, 100, 200, 4, job="second")
    run = report(an_outcome(first, second))
    assert run.worst_rho_job == "second"
    assert run.worst_rho == pytest.approx(200 / (100 * (2 * 100 + 1 * 100) / 200))  # 1.33
    assert run.unfair_share == 0.5
    assert run.mean_rho == pytest.approx((200 / 150 + 100 / 200) / 2)


def test_fairness_of_users_weighs_all_their_time() -> None:
    ann, bob = a_fate(0, 0, 100, 4, user="ann"), a_fate(0, 100, 200, 4, user="bob")
    run = report(an_outcome(ann, bob))
    assert run.user_rho == {"ann": pytest.approx(0.5), "bob": pytest.approx(200 / 150)}
    assert report(an_outcome(a_fate(0, 0, 1))).user_rho == {}


def test_a_share_of_a_device_counts_as_what_it_is_of_its_memory() -> None:
    assert fairness.wanted(TraceJob("a", 0, 2, 1, gpu_mem_mib=1024), Fleet(1, 1, 4096)) == 0.5
    assert fairness.wanted(TraceJob("a", 0, 2, 1), Fleet(1, 1, 4096)) == 2


def test_jobs_of_no_length_do_not_make_the_fairness_endless() -> None:
    assert report(an_outcome(a_fate(0, 3, 3, duration=0.0))).worst_rho == 3.0


def test_on_the_real_trace_nobody_is_faster_than_alone() -> None:
    outcome = in_order(read_trace(DATA), Fleet(2, 8))
    run = report(outcome)
    assert run.jobs == 400 and 0 < run.utilization <= 1
    assert run.makespan_s >= sum(f.job.duration * f.job.gpus for f in outcome.fates) / 16
    assert run.mean_completion_s == pytest.approx(run.mean_wait_s + sum(f.job.duration for f in outcome.fates) / 400)
    times, shares = completion_curve(outcome.fates)
    assert times == sorted(times) and shares[-1] == 1.0 and shares[0] == 1 / 400


changes = st.lists(st.tuples(st.integers(0, 50), st.integers(-5, 5)), max_size=20)


@given(changes, st.integers(-5, 60), st.integers(1, 30))
def test_the_average_of_steps_is_that_of_every_second(steps: list[tuple[int, int]], start: int, length: int) -> None:
    level = [sum(change for time, change in steps if time <= second) for second in range(start, start + length)]
    made = Steps((float(time), float(change)) for time, change in steps)
    assert made.mean(start, start + length) == pytest.approx(sum(level) / length)
    halves = made.means(start, start + length, 2)
    assert sum(halves) / 2 == pytest.approx(sum(level) / length)
