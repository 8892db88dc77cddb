"""Under policies that take turns only who has shown that it can come back is moved: it watches, or has saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.policy import PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules


@pytest.fixture
def world() -> World:
    cost = PreemptCost(1.0, 1.0, 1.0)
    policy = PolicyRules(PolicyName.SRTF, tick=0.0, min_run=0.0, cost=cost, between_accounts=False)
    return World(1, rules=replace(Rules.default(), policy=policy))


def comes(world: World) -> list[int]:
    """A shorter job comes. Returns who is asked to leave for it."""
    world.submit(expected=10.0)
    world.passes(1.0)
    return world.asked_to_stop()


def test_who_saves_only_on_a_signal_is_not_moved_before_its_first_save(world: World) -> None:
    job = world.submit(expected=10_000.0)
    world.started(job)
    world.passes(100.0)
    assert comes(world) == []
    world.saves(job, 7)
    world.passes(1.0)
    assert world.asked_to_stop() == [job]


def test_who_watches_is_moved_although_it_has_not_saved(world: World) -> None:
    job = world.submit(expected=10_000.0)
    world.started(job)
    world.watches(job)
    assert comes(world) == [job]


@pytest.mark.parametrize(("saved_step", "moved"), [(None, False), (7, True)])
def test_to_have_left_with_85_alone_is_not_to_have_saved(world: World, saved_step: int | None, moved: bool) -> None:
    job = world.submit(expected=10_000.0)
    world.started(job)
    other = world.submit(expected=100_000.0)
    world.preempt(job)
    world.asked_to_stop()
    world.exits(job, code=85, saved_step=saved_step)
    world.started(other)
    world.exits(other)
    world.started(job)
    assert (comes(world) == [job]) is moved


def test_an_elastic_job_that_shows_it_late_grows_then() -> None:
    world = World(2, rules=Rules(policy=PolicyRules(resize_interval=10.0)))
    other = world.submit()
    job = world.submit(gpus=1, gpus_max=2)
    for each in (other, job):
        world.started(each)
    world.exits(other)
    world.passes(3600.0)
    assert world.asked_to_stop() == [] and len(world.where(job)) == 1
    world.watches(job)
    world.passes(1.0)
    assert world.asked_to_stop() == [job], "to go on with both devices"
