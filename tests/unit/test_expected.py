"""How long a job is expected to run: told, limited or predicted; how much of it is left; and the words for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import World

from gpusched.model.past import Past
from gpusched.model.state import Saved
from gpusched.policy.expected import basis, remaining, time_left, total

HOUR = 3600.0


def a_world(*times: float, name: str = "train") -> World:
    world = World(2)
    for ran in times:
        world.engine.view.durations.learn(Past("ann", "ann", name, 1, ran))
    return world


def running(world: World, **wanted: Any) -> int:
    job = world.submit(name="train", **wanted)
    world.started(job)
    return job


def left(world: World, job: int) -> float | None:
    return remaining(world.engine.view, world.job(job), world.now)


def test_what_its_owner_expects_goes_before_its_limit_and_that_before_predictions() -> None:
    world = a_world(10, 20, 30)
    view = world.engine.view
    told = world.job(running(world, expected=HOUR, time_limit=2 * HOUR))
    limited = world.job(running(world, time_limit=2 * HOUR))
    predicted = world.job(world.submit(name="train"))
    assert [total(view, job) for job in (told, limited, predicted)] == [HOUR, 2 * HOUR, 30]
    assert basis(view, told) == "its --expect"
    assert basis(view, limited) == "its time limit"
    assert basis(view, predicted) == "3 jobs named train by ann on 1 device"


def test_nobody_knows_anything_of_the_first_job() -> None:
    world = a_world()
    job = running(world)
    assert total(world.engine.view, world.job(job)) is None
    assert left(world, job) is None and basis(world.engine.view, world.job(job)) == ""


def test_time_that_it_has_run_is_taken_off() -> None:
    world = a_world()
    job = running(world, expected=HOUR)
    world.passes(600)
    assert left(world, job) == 3000


def test_a_prediction_is_made_anew_as_the_job_runs() -> None:
    world = a_world(100, 200, 300, 1000, 2000, 4000)
    job = running(world)
    assert left(world, job) == 4000
    world.passes(250)
    assert left(world, job) == 3750
    world.passes(1000)
    assert left(world, job) == 2750, "only two ran longer: what was expected at its start counts"


@pytest.mark.parametrize(("after", "more"), [(HOUR, 360.0), (2 * HOUR, 720.0)])
def test_a_job_past_its_estimate_needs_a_little_more(after: float, more: float) -> None:
    world = a_world()
    job = running(world, expected=HOUR)
    world.passes(after)
    assert left(world, job) == more


def test_a_short_job_past_its_estimate_needs_a_minute_more() -> None:
    world = a_world()
    job = running(world, expected=30)
    world.passes(40)
    assert left(world, job) == 60


def test_no_attempt_goes_on_past_its_time_limit() -> None:
    world = a_world()
    job = running(world, expected=HOUR, time_limit=2 * HOUR)
    world.passes(2 * HOUR - 100)
    assert left(world, job) == 100


def test_what_a_preemption_cost_it_comes_on_top() -> None:
    world = a_world()
    job = running(world, gpus=2, expected=HOUR, qos="low")
    world.watches(job)
    world.passes(1000)
    high = world.submit(qos="high")
    world.passes(20)
    world.saves(job, 7)
    world.exits(job, code=85, saved_step=7)
    assert world.job(job).saved == Saved("ckpt-7", 7, world.now.wall)
    world.exits(high)
    world.started(job)
    assert world.job(job).ran == 1020 and world.job(job).lost == 60, "what is assumed until it is back"
    world.passes(10)
    world.watches(job)
    assert world.job(job).lost == 30, "measured: 20 s to leave, 10 s to load"
    assert left(world, job) == HOUR - 1000


def test_work_that_was_lost_has_to_be_done_again_and_counts_for_nothing_in_a_prediction() -> None:
    world = a_world(250, 300, 400)
    job = replace(world.job(world.submit(name="train", hold=True)), ran=500.0, lost=300.0)
    assert (total(world.engine.view, job), time_left(world.engine.view, job)) == (400.0, 200.0)


def test_one_that_is_past_its_time_limit_and_still_saving_needs_a_minute_more() -> None:
    world = a_world()
    job = running(world, time_limit=100.0)
    world.passes(110)
    assert left(world, job) == 60.0
