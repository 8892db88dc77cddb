"""The engine learns how long jobs run from those that end, and what moving a job costs from its own restarts."""

from __future__ import annotations

import pytest
from builders import World

from gpusched.model.policy import PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.costs import cost
from gpusched.policy.predict import Prediction


def predicted(world: World, ran: float = 0.0) -> Prediction | None:
    return world.engine.view.durations.predict("ann", "ann", "train", 1, ran)


def run(world: World, seconds: float, code: int = 0, name: str = "train") -> int:
    job = world.submit(name=name)
    world.started(job)
    world.passes(seconds)
    world.exits(job, code=code)
    return job


def test_jobs_that_end_teach_how_long_jobs_run() -> None:
    world = World(1)
    for seconds in (100, 200, 300):
        assert predicted(world) is None
        run(world, seconds)
    assert predicted(world) == Prediction(200, 100, 200, 300, 3, "3 jobs named train by ann on 1 device")


def test_a_false_start_teaches_nothing_and_a_late_failure_does() -> None:
    world = World(1)
    for seconds in (1, 2, 3, 4):
        run(world, seconds, code=1)
    assert predicted(world) is None
    for seconds in (1000, 2000, 3000):
        run(world, seconds, code=1)
    found = predicted(world)
    assert found is not None and found.samples == 3


def test_a_cancelled_job_teaches_how_long_it_held_its_devices() -> None:
    world = World(1)
    for seconds in (5, 400, 500, 600):
        job = world.submit(name="train")
        world.started(job)
        world.passes(seconds)
        world.cancel(job)
        world.exits(job, code=1)
    found = predicted(world)
    assert found is not None and (found.samples, found.low) == (3, 400)


def test_what_all_attempts_ran_counts_without_what_the_move_cost() -> None:
    world = World(1)
    for _ in range(3):
        job = world.submit(name="train", qos="low")
        world.started(job)
        world.watches(job)
        world.passes(970)
        high = world.submit(qos="high", name="other")
        world.passes(30)
        world.exits(job, code=85, saved_step=5)
        world.started(high)
        world.exits(high)
        world.started(job)
        world.passes(50)
        world.watches(job)
        world.passes(200)
        world.exits(job)
        assert (world.job(job).ran, world.job(job).lost) == (1250, 80)
    found = predicted(world)
    assert found is not None and found.middle == 1170


@pytest.mark.parametrize("crashes", [1, 3])
def test_after_a_restart_the_daemon_knows_what_it_had_learned(crashes: int) -> None:
    world = World(1)
    for seconds in (100, 5000, 300, 700):
        run(world, seconds)
    run(world, 2, code=1)
    waiting = world.submit(name="train")
    world.started(waiting)
    before = [predicted(world, ran) for ran in (0.0, 150.0, 1000.0)]
    index = world.engine.view.durations.index("ann", "ann", "train", 1, 400.0)
    for _ in range(crashes):
        world.crash()
    assert [predicted(world, ran) for ran in (0.0, 150.0, 1000.0)] == before
    assert world.engine.view.durations.index("ann", "ann", "train", 1, 400.0) == index
    world.exits(waiting)
    assert predicted(world) is not None


def test_short_jobs_learned_go_first_and_an_old_one_leaves_for_them() -> None:
    rules = Rules(policy=PolicyRules(name=PolicyName.PREDICTED, tick=0.0))
    world = World(1, rules=rules)
    for _ in range(5):
        run(world, 60, name="short")
        run(world, 30_000, name="long")
    running = world.submit(name="long")
    world.started(running)
    world.watches(running)
    world.passes(5000)
    other, short = world.submit(name="long"), world.submit(name="short")
    world.passes(60)
    assert world.asked_to_stop() == [running]
    world.exits(running, code=85, saved_step=1)
    assert world.running() == {short}
    world.started(short)
    world.passes(60)
    world.exits(short)
    assert world.running() == {running}, "what it has left is less than what the other needs"
    assert world.states(other) == [JobState.PENDING]


# ---- what moving costs ----------------------------------------------------------------------------------------------


ASSUMED = 60.0


def moved(world: World, job: int, leaving: float, loading: float, watches: bool = True, saved: bool = True) -> None:
    """A more important job comes and goes; `job` needs so many seconds to leave and, back again, to load."""
    high = world.submit(qos="high", name="high")
    world.passes(leaving)
    world.exits(job, code=85 if saved else 1, saved_step=int(world.now.boot) if saved else None)
    world.started(high)
    world.exits(high)
    world.started(job)
    world.passes(loading)
    if watches:
        world.watches(job)


def low(world: World, watches: bool = True) -> int:
    job = world.submit(qos="low")
    world.started(job)
    if watches:
        world.watches(job)
    return job


def price(world: World, job: int) -> float:
    return cost(world.engine.view, world.job(job))


def test_what_moving_costs_is_assumed_until_it_has_been_measured() -> None:
    world = World(1, rules=Rules(policy=PolicyRules(cost=PreemptCost(30.0, 60.0, 7.0))))
    assert price(world, low(world)) == 7.0


def test_what_moving_costs_is_measured_and_follows_later_moves_by_half() -> None:
    world = World(1)
    job = low(world)
    assert price(world, job) == ASSUMED
    world.passes(1000)
    moved(world, job, leaving=20, loading=5)
    assert (price(world, job), world.job(job).lost) == (25, 25)
    world.passes(1000)
    moved(world, job, leaving=10, loading=5)
    assert (price(world, job), world.job(job).lost) == (20, 40)
    assert world.job(job).preemptions == 2


def test_until_it_is_back_the_cost_is_what_is_assumed_or_what_leaving_took() -> None:
    world = World(1)
    job = low(world)
    world.passes(1000)
    world.submit(qos="high")
    world.passes(10)
    world.exits(job, code=85, saved_step=1)
    assert (price(world, job), world.job(job).lost) == (ASSUMED, ASSUMED)
    slow = World(1)
    job = low(slow)
    slow.passes(1000)
    slow.submit(qos="high")
    slow.passes(55)
    slow.exits(job, code=85, saved_step=1)
    slow.crash()
    assert price(slow, job) == ASSUMED


def test_work_that_could_not_be_saved_belongs_to_the_cost() -> None:
    world = World(1)
    job = low(world)
    world.passes(500)
    world.saves(job, 3)
    world.passes(400)
    moved(world, job, leaving=10, loading=5, saved=False)
    assert (price(world, job), world.job(job).lost) == (415, 415)


def test_a_job_that_never_saved_starts_from_nothing() -> None:
    world = World(1)
    job = low(world)
    world.passes(900)
    moved(world, job, leaving=10, loading=5, saved=False)
    assert (price(world, job), world.job(job).lost) == (915, 915)
    world.passes(100)
    moved(world, job, leaving=10, loading=5, saved=False)
    assert world.job(job).lost == 915 + 115, "what was lost before is not lost again"


def test_a_job_that_does_not_watch_keeps_the_assumed_cost() -> None:
    world = World(1)
    job = low(world, watches=False)
    world.passes(1000)
    moved(world, job, leaving=10, loading=5, watches=False)
    assert price(world, job) == ASSUMED


def test_an_attempt_that_was_never_started_has_lost_nothing() -> None:
    world = World(1)
    job = world.submit(qos="low")
    world.submit(qos="high")
    world.never_starts(job)
    assert (world.job(job).lost, world.job(job).cost) == (0.0, None)


def test_what_happened_while_the_daemon_was_away_is_not_measured() -> None:
    world = World(1)
    job = low(world)
    world.passes(1000)
    high = world.submit(qos="high")
    world.passes(10)
    world.exits(job, code=85, saved_step=1)
    world.started(high)
    world.exits(high)
    world.started(job)
    world.processes[world.key(job)].watching = True  # and nobody is there to see it
    world.passes(3600)
    world.crash()
    assert world.job(job).cost is None and price(world, job) == ASSUMED


def test_who_is_asked_to_requeue_by_its_owner_is_not_measured() -> None:
    world = World(1)
    job = low(world)
    world.passes(1000)
    world.requeue(job)
    world.passes(10)
    world.exits(job, code=85, saved_step=1)
    world.started(job)
    world.passes(5)
    world.watches(job)
    assert (world.job(job).lost, world.job(job).cost, world.job(job).preemptions) == (0.0, None, 0)
