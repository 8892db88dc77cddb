"""Jobs that have waited longer than the policy's patience go before the others of their level."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules

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
