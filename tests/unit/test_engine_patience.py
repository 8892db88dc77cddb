"""Jobs that have waited longer than the policy's patience go before the others of their level."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.policy.explain import Word

PATIENCE = 3600.0
EVERY = pytest.mark.parametrize("name", list(PolicyName))


def a_world(devices: int, name: PolicyName, **policy: float) -> World:
    rules = PolicyRules(name, patience=PATIENCE, **policy)  # type: ignore[arg-type]
    return World(devices, rules=replace(Rules.default(), policy=rules))


@EVERY
def test_all_elements_of_an_array_that_has_waited_long_start_at_once(name: PolicyName):
    world = a_world(4, name)
    before = world.submit(gpus=4)
    world.submit(array="0-3")
    world.passes(PATIENCE + 400)
    world.exits(before)
    assert len(world.running()) == 4


@EVERY
def test_the_rest_of_an_array_goes_on_being_first(name: PolicyName):
    world = a_world(1, name)
    before = world.submit(gpus=1)
    array = world.submit(array="0-2")
    world.passes(PATIENCE + 400)
    world.submit(expected=1.0)
    for element in range(3):
        world.exits(before)
        before = array + element
        assert world.running() == {before}


@EVERY
@pytest.mark.parametrize("calm", [True, False])
def test_a_gang_does_not_starve_behind_small_jobs_that_cannot_be_asked_to_leave(name: PolicyName, calm: bool):
    world = a_world(2, name, min_run=0.0, tick=0.0, calm=calm)
    running = [world.submit(expected=100.0) for _ in range(2)]
    world.started(*running)
    gang = world.submit(gpus=2, expected=1000.0)
    for _ in range(150):  # fit-first may pass it a hundred times
        world.passes(50)
        following = world.submit(expected=100.0)
        world.exits(running.pop(0))
        if world.where(gang):
            return
        if world.where(following):
            world.started(following)
            running.append(following)
        if not running:
            break
    raise AssertionError("the gang has not started")


@pytest.mark.parametrize("name", [name for name in PolicyName if name.preemptive])
def test_what_is_kept_for_a_job_that_has_waited_long_is_not_kept_from_higher_levels(name: PolicyName):
    world = a_world(2, name, min_run=0.0, tick=0.0)
    first, second = (world.submit(qos="high") for _ in range(2))
    world.started(first, second)
    gang = world.submit(gpus=2)
    world.passes(PATIENCE + 400)
    world.exits(first)
    small = world.submit()
    assert world.where(small) == ()
    assert world.why(small).word is Word.PRIORITY
    more = world.submit(qos="high")
    assert world.where(more) == (0,)
    world.exits(more)
    world.exits(second)
    assert world.where(gang) == (0, 1)


@pytest.mark.parametrize("name", [PolicyName.BACKFILL, PolicyName.FIT_FIRST])
def test_past_its_patience_who_has_waited_longest_is_first_whatever_its_account_has_used(name: PolicyName):
    world = a_world(1, name)
    before = world.submit()
    mine = world.submit()
    world.passes(1)
    world.submit(by="bob")
    world.passes(PATIENCE + 400)
    world.exits(before)
    assert world.running() == {mine}
