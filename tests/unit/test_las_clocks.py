"""las on a real machine: the wall clock and the one that device time is counted by never agree to the millisecond."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World

from gpusched.model.clock import Instant
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules


@pytest.mark.parametrize("ahead", [-3600.0, -0.02, 0.0, 0.02, 3600.0], ids=lambda seconds: f"{seconds:+} s")
@pytest.mark.parametrize("limits", [(5.0,), (18_000.0,)], ids=["in the second queue", "in the first queue"])
def test_who_leaves_is_queued_again_whatever_the_wall_clock_says(ahead: float, limits: tuple[float, ...]) -> None:
    """The wall clock gains (or loses) so many seconds while the job runs."""
    policy = PolicyRules(PolicyName.LAS, las_limits=limits, min_run=1.0, tick=1.0, between_accounts=False)
    world = World(1, rules=replace(Rules.default(), policy=policy))
    first, second = world.submit(), world.submit()
    for leaves, comes in ((first, second), (second, first)):
        world.started(leaves)
        world.watches(leaves)
        world.passes(10.0)
        world.now = Instant(world.now.wall + ahead, world.now.boot)
        world.preempt(leaves)
        world.exits(leaves, code=85, saved_step=1)
        assert world.running() == {comes}
