"""Estimated starts: the engine rolled forward, held against how it then really goes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from builders import World
from futures import Future, estimate, in_seconds, set_going, the_forecast
from reserving import reserve

from gpusched.engine.picture import Remembered, take
from gpusched.model.errors import GpuschedError
from gpusched.model.past import Past
from gpusched.model.policy import PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules
from gpusched.policy.predict import Durations
from gpusched.simulator.forecast import forecast

FREE = PreemptCost(0.0, 0.0, 0.0)


def rules(name: PolicyName = PolicyName.BACKFILL, **policy: object) -> Rules:
    return Rules(policy=PolicyRules(name=name, **policy))  # type: ignore[arg-type]


def a_full_world(**policy: object) -> tuple[World, int]:
    """One device, on which a job runs for an hour."""
    world = World(1, rules=rules(**policy))
    job = world.submit(expected=3600.0)
    set_going(world)
    return world, job


def test_a_job_starts_when_the_running_one_is_expected_to_end() -> None:
    world, _ = a_full_world()
    world.passes(600.0)
    waiting = world.submit(expected=60.0)
    assert in_seconds(world, estimate(world, waiting)) == (3000, 3000, 3000)


def test_those_ahead_come_first() -> None:
    world, _ = a_full_world()
    first, second = world.submit(expected=60.0), world.submit(expected=60.0)
    found = the_forecast(world).estimates
    assert in_seconds(world, found[first]) == (3600, 3600, 3600)
    assert in_seconds(world, found[second]) == (3660, 3660, 3660)


def test_a_forecast_leaves_no_traces() -> None:
    world, _ = a_full_world()
    world.submit(expected=60.0)
    before = repr((world.engine.state, world.engine.view.buckets, world.engine.view.live))
    the_forecast(world)
    assert repr((world.engine.state, world.engine.view.buckets, world.engine.view.live)) == before


def test_nobody_can_say_when_a_job_of_unknown_length_ends() -> None:
    world = World(1)
    unknown = world.submit()
    set_going(world)
    waiting = world.submit(expected=60.0)
    found = estimate(world, waiting)
    assert (found.earliest, found.expected, found.latest) == (None, None, None)
    assert found.because == f"job {unknown} has no time limit and nothing like it has run before, so nobody can say"


def test_jobs_that_have_run_before_say_how_long_one_may_run() -> None:
    world = World(1)
    for ran in range(100, 1100, 100):
        world.engine.view.durations.learn(Past("ann", "ann", "job", 1, float(ran)))
    world.submit()
    set_going(world)
    waiting = world.submit()
    assert in_seconds(world, estimate(world, waiting)) == (200, 500, 900)


def test_a_time_limit_is_the_latest_and_jobs_like_it_say_the_earliest() -> None:
    world = World(1)
    for _ in range(5):
        world.engine.view.durations.learn(Past("ann", "ann", "job", 1, 1000.0))
    world.submit(time_limit=3600.0)
    set_going(world)
    waiting = world.submit(name="other", time_limit=60.0)
    assert in_seconds(world, estimate(world, waiting)) == (1000, 3600, 3600)


def test_what_its_owner_expects_is_believed_and_the_time_limit_is_the_latest() -> None:
    world = World(1)
    world.submit(expected=100.0, time_limit=500.0)
    set_going(world)
    waiting = world.submit(expected=1.0)
    assert in_seconds(world, estimate(world, waiting)) == (100, 100, 500)


def test_a_job_past_its_estimate_may_end_at_once_or_a_little_later() -> None:
    world = World(1)
    world.submit(expected=100.0)
    set_going(world)
    world.passes(2000.0)
    waiting = world.submit(expected=1.0)
    assert in_seconds(world, estimate(world, waiting)) == (0, 200, 200)


def test_a_victim_may_use_up_its_grace_period() -> None:
    world = World(1)
    world.submit(qos="low", expected=3600.0)
    set_going(world)
    high = world.submit(qos="high")
    assert in_seconds(world, estimate(world, high)) == (0, 0, 60)


def test_begin_times_dependencies_and_the_limit_of_an_array_are_kept() -> None:
    world = World(2)
    first = world.submit(expected=100.0)
    set_going(world)
    begin = world.submit(expected=10.0, begin=world.now.wall + 50.5)
    after = world.submit(expected=10.0, after=f"afterok:{first}")
    array = world.submit(expected=30.0, array="0-2%1", begin=world.now.wall + 200)
    found = {job: in_seconds(world, each)[1] for job, each in the_forecast(world).estimates.items()}
    assert found == {begin: 50, after: 100, array: 200}  # of elements that wait as one row the first
    assert [in_seconds(world, estimate(world, array + place))[1] for place in (1, 2)] == [230, 260]


def test_held_jobs_are_not_asked_for_and_say_so_when_they_are() -> None:
    world = World(1)
    held = world.submit(hold=True)
    assert the_forecast(world).estimates == {}
    assert estimate(world, held).because == "it waits for somebody to release or change it"


def test_a_submit_that_is_only_tried_out() -> None:
    world, _ = a_full_world()
    world.submit(expected=400.0)
    found = the_forecast(world, submit=world.submission(expected=5.0))
    (job,) = found.submitted
    assert in_seconds(world, found.estimates[job]) == (4000, 4000, 4000)
    with pytest.raises(GpuschedError):
        the_forecast(world, submit=world.submission(gpus=5))


def test_a_roll_ends_when_the_caller_has_had_enough() -> None:
    world, _ = a_full_world()
    jobs = [world.submit(expected=60.0) for _ in range(10)]
    picture = take(world.engine, world.now)

    def after_five(_guess: object):
        left = iter([False] * 5)
        return lambda: next(left, True)

    found = forecast(picture, enough=after_five)
    assert not found.complete
    assert found.estimates[jobs[0]].expected is not None
    assert found.estimates[jobs[-1]] == replace(
        found.estimates[jobs[-1]], expected=None, because="too many jobs are ahead of it"
    )


def test_an_element_that_waits_in_its_arrays_row_is_not_said_to_start_never() -> None:
    world, _ = a_full_world()
    array = world.submit(expected=60.0, array="0-99")
    found = forecast(take(world.engine, world.now), [array + 99], enough=lambda _guess: lambda: True)
    assert found.estimates[array + 99].because == "too many jobs are ahead of it"


def test_jobs_of_unknown_length_are_named_also_by_a_roll_that_was_cut_short() -> None:
    world = World(1)
    endless = world.submit()
    set_going(world)
    waiting = world.submit()
    found = forecast(take(world.engine, world.now), [waiting], enough=lambda _guess: lambda: True)
    assert found.estimates[waiting].because.startswith(f"job {endless} has no time limit and nothing like it has run")


def a_busy_world(policy: PolicyName, seed: int) -> tuple[World, dict[int, float]]:
    """Jobs of all kinds, and how long each runs: what its owner said, to the tenth of a second."""
    dice = random.Random(f"{policy} {seed}")
    world = World(4, rules=rules(policy, cost=FREE, tick=307.3))  # no multiple of anything: nothing happens by a hair
    world.engine.view.durations = Remembered(Durations())  # what it learns meanwhile would change the order
    reserve(world, devices="0,1", start_in=5000.0, users="bob")
    lasts: dict[int, float] = {}
    for number in range(25):
        seconds = dice.choice((33.7, 211.3, 1009.1, 7207.9))
        kind: dict[str, object] = {"gpus": dice.choice((1, 1, 2, 4)), "qos": dice.choice(("low", "normal", "high"))}
        kind |= dice.choice(({}, {}, {}, {"array": "0-2%1"}, {"begin": world.now.wall + 777.7}, {"gpus": 0}))
        if number and dice.random() < 0.2:
            kind["after"] = f"afterany:{dice.randrange(1, number + 1)}"
        kind["time_limit" if dice.random() < 0.5 else "expected"] = seconds
        done = world.submitted(by=dice.choice(("ann", "bob")), **kind)
        lasts |= dict.fromkeys(done.job_ids, seconds)
        Future(world, lasts).at_once()
        if dice.random() < 0.5:
            world.passes(0.1 * dice.randrange(30))
            Future(world, lasts).at_once()
    return world, lasts


@pytest.mark.parametrize("policy", list(PolicyName))
@pytest.mark.parametrize("seed", range(6))
def test_the_expected_start_is_the_real_one_where_run_times_are_exact(policy: PolicyName, seed: int) -> None:
    world, lasts = a_busy_world(policy, seed)
    found = the_forecast(world)
    waiting = set(found.estimates)
    assert waiting and found.complete
    starts = Future(world, lasts).play()
    assert {job: found.estimates[job].expected for job in waiting} == pytest.approx(
        {job: starts[job] for job in waiting}, abs=0.01, rel=0.0
    )
