"""Under a limit too nobody starves: past the policy's patience, what is left of the limit is kept for who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.policy.explain import Word

PATIENCE = 2000.0
EVERY = pytest.mark.parametrize("name", list(PolicyName))


def a_world(name: PolicyName, limits: LimitRules) -> World:
    policy = PolicyRules(name, patience=PATIENCE)
    return World(8, rules=replace(Rules.default(), policy=policy, limits=limits))


def set_going(world: World) -> None:
    for job_id, attempt in sorted(world.engine.view.live.items()):
        if attempt.started is None:
            world.started(job_id)


def a_stream(world: World, until: float, besides: int) -> None:
    """Bob's small jobs of level low come and go, so that his limit or that of all is never free for long."""
    end = world.now.boot + until
    while world.now.boot < end and besides not in world.running():
        world.exits(min(world.running()))
        world.submit(by="bob", qos="low", expected=100.0)
        world.passes(25.0)
        set_going(world)


def a_gang_behind_small_jobs(name: PolicyName) -> tuple[World, int]:
    world = a_world(name, LimitRules(partition={"default": Limits(max_devices=4)}))
    for _ in range(6):
        world.submit(by="bob", qos="low", expected=100.0)
    set_going(world)
    return world, world.submit(by="ann", gpus=4, expected=100.0)


@EVERY
def test_a_gang_at_a_limit_is_not_passed_for_ever_by_small_jobs_under_the_same_limit(name: PolicyName) -> None:
    world, gang = a_gang_behind_small_jobs(name)
    a_stream(world, PATIENCE - 100.0, gang)
    assert gang not in world.running(), "else this shows nothing"
    a_stream(world, 400.0, gang)
    assert gang in world.running()


@EVERY
def test_those_who_are_kept_from_the_rest_of_a_limit_are_told_for_whom(name: PolicyName) -> None:
    world, gang = a_gang_behind_small_jobs(name)
    world.passes(PATIENCE + 100.0)
    small = world.submit(by="bob", expected=10.0)
    world.exits(min(world.running()))
    assert world.why(gang).text.startswith("partition default uses 3 of at most 4 devices")
    why = world.why(small)
    assert why.word == Word.PARTITION_DEVICES
    assert why.text == f"more devices of partition default are kept for job {gang}, which has waited longer than 33:20"
    assert why.next.startswith("that job starts, or an administrator raises max_devices of [limits.partition.")


@EVERY
def test_a_higher_level_and_jobs_without_devices_are_not_kept_from_a_limit(name: PolicyName) -> None:
    world, _ = a_gang_behind_small_jobs(name)
    world.passes(PATIENCE + 100.0)
    world.exits(min(world.running()))
    high, cpu = world.submit(by="bob", qos="high"), world.submit(by="bob", gpus=0)
    assert {high, cpu} <= world.running()


@EVERY
def test_a_limit_of_running_jobs_is_kept_too_and_free_again_when_who_waited_is_gone(name: PolicyName) -> None:
    limits = LimitRules(user={"ann": Limits(max_running=2, max_devices=4)})
    world = a_world(name, limits)
    first, second = world.submit(gpus=3), world.submit()
    gang = world.submit(gpus=4)
    set_going(world)
    world.passes(PATIENCE + 100.0)
    world.exits(second)
    small = world.submit(qos="low")
    assert small not in world.running() and "kept for job" in world.why(small).text
    world.cancel(gang)
    assert world.running() == {first, small}


def test_an_elastic_job_does_not_grow_into_what_is_kept_under_a_limit() -> None:
    world = a_world(PolicyName.BACKFILL, LimitRules(partition={"default": Limits(max_devices=4)}))
    rigid, elastic = world.submit(by="bob", gpus=3), world.submit(by="bob", gpus=1, gpus_max=4)
    world.started(rigid, elastic)
    world.watches(elastic)
    gang = world.submit(gpus=4)
    world.passes(PATIENCE + 100.0)
    world.exits(rigid)
    world.passes(PATIENCE)
    assert (len(world.where(elastic)), world.asked_to_stop()) == (1, [])
    world.exits(elastic)
    assert len(world.where(gang)) == 4
