"""Without the calm rules devices are counted out as the published simulators do it: who leaves, and for whom."""

from __future__ import annotations

from builders import World
from elastic_worlds import goes_on

from gpusched.model.policy import PolicyName
from gpusched.simulator.settings import published_rules


def test_nobody_leaves_for_an_element_that_its_array_does_not_let_start() -> None:
    world = World(2, rules=published_rules(PolicyName.SRTF))
    long = world.submit(gpus=1, expected=1000.0)
    goes_on(world, long)
    short = world.submit(gpus=1, expected=60.0, array="0-3%1")
    goes_on(world, short)
    world.passes(10.0)
    assert world.asked_to_stop() == []
    world.submit(gpus=1, expected=60.0)
    assert world.asked_to_stop() == [long]


def test_nobody_leaves_for_nobody() -> None:
    """Processes that are not ours have come to a device: that alone helps nobody who waits."""
    world = World(2, rules=published_rules(PolicyName.SRTF))
    one, other = (world.submit(gpus=1, expected=1000.0) for _ in range(2))
    goes_on(world, one, other)
    world.submit(gpus=2, expected=5000.0)
    world.foreign(0, 3000)
    world.passes(10.0)
    assert world.asked_to_stop() == []
