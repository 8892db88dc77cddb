"""What part of the devices is each account's under las, and whose turn it is for gangs that are larger than a part."""

from __future__ import annotations

from dataclasses import replace

from builders import World

from gpusched.model.changes import AccountUsage
from gpusched.model.policy import FairShare, PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.policy.parts import Parts

TURN = 1000.0  # of four devices


def a_world(**shares: float) -> World:
    fair = FairShare(half_life_days=0.0, entry_hours=0.0, shares=tuple(shares.items()))
    policy = PolicyRules(PolicyName.LAS, fair_share=fair, turn=TURN, tick=0.0, min_run=0.0)
    return World(4, rules=replace(Rules.default(), policy=policy))


def has_used(world: World, **device_seconds: float) -> None:
    wall = world.now.wall
    rows = [AccountUsage(account, seconds, wall) for account, seconds in device_seconds.items()]
    world.engine.view.ledger.load(rows, wall)


def granted(world: World, *jobs: int) -> list[bool]:
    """Which of these gangs would be granted devices, each as the first one that is asked for."""
    view = world.engine.view
    movable = set(view.live)
    gangs = [world.job(job) for job in jobs]
    return [Parts(view, world.now, movable).grant(gang, float(gang.spec.request.gpus)) for gang in gangs]


def gangs_that_wait(world: World, *accounts: str, beside: int = 4) -> list[int]:
    """One of the whole machine for each account, while a job of root runs on so many devices."""
    runs = world.submit(by="root", gpus=beside, account="other")
    world.started(runs)
    return [world.submit(gpus=4, account=account) for account in accounts]


def test_the_turn_goes_to_who_has_used_least_by_its_share():
    world = a_world(ann=3.0, bob=1.0, other=2.0)
    has_used(world, ann=60_000.0, bob=40_000.0, other=200_000.0)
    assert granted(world, *gangs_that_wait(world, "ann", "bob")) == [True, False]


def test_of_several_that_are_behind_the_turn_goes_to_who_has_used_least():
    world = a_world()
    has_used(world, ann=20_000.0, bob=1000.0, other=60_000.0)
    assert granted(world, *gangs_that_wait(world, "ann", "bob")) == [False, True]


def test_a_turn_does_not_begin_before_another_has_used_a_turn_more():
    for more, turn_of_ann in ((3900.0, False), (4100.0, True)):  # three accounts of equal shares: a turn is 4,000
        world = a_world()
        has_used(world, ann=60_000.0, bob=60_000.0, other=60_000.0 + more)
        assert granted(world, *gangs_that_wait(world, "ann", "bob", beside=1)) == [turn_of_ann, False]


def test_who_has_the_turn_keeps_it_until_it_has_used_a_turn_more_than_another():
    world = a_world()
    hers = world.submit(gpus=4)
    world.started(hers)
    his = world.submit(by="bob", gpus=4)
    world.passes(TURN - 1)
    assert granted(world, hers, his) == [True, False]
    world.passes(2)
    assert granted(world, hers, his) == [False, True]


def test_within_its_part_who_does_not_have_the_turn_gets_nothing_either():
    world = a_world()
    hers = world.submit(gpus=4)
    world.started(hers)
    his = world.submit(by="bob", gpus=2)
    assert granted(world, hers, his) == [True, False]
