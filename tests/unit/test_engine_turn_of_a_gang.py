"""las: the turn of an account whose gang is larger than its part of the devices."""

from __future__ import annotations

from builders import World

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState


def test_in_its_turn_an_account_does_not_get_its_part_besides_the_gang() -> None:
    """Three accounts, two devices each; bob's gang has three, and a small job of his waits."""
    world = World(6, rules=Rules(policy=PolicyRules(PolicyName.LAS, min_run=120.0)))
    ann = world.submit(gpus=1)
    gang = world.submit("bob", gpus=3)
    theory = world.submit(gpus=2, account="theory")
    for job in (ann, gang, theory):
        world.started(job)
        world.watches(job)
    small = world.submit("bob", gpus=1)
    world.passes(3000.0)
    assert world.asked_to_stop() == [], "theory has no more than its part"
    assert world.states(small) == [JobState.PENDING]
    world.exits(ann)
    assert world.states(small) == [JobState.STARTING]
