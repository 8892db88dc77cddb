"""The policies that preempt: in which order who runs is asked to leave, for how many, and what is kept for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import World

from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import FairShare, PolicyName, PolicyRules
from gpusched.model.rules import Rules

HOUR = 3600.0
PATIENCE = 3600.0


def a_world(devices: int, name: PolicyName = PolicyName.SRTF, limits: LimitRules | None = None, **policy: Any) -> World:
    """Who may be asked to leave is asked at once."""
    policy_rules = PolicyRules(name, min_run=0.0, tick=0.0, patience=PATIENCE, **policy)
    return World(devices, rules=replace(Rules.default(), limits=limits or LimitRules(), policy=policy_rules))


def runs(world: World, *jobs: int) -> None:
    for job in jobs:
        world.started(job)
        world.watches(job)


def two_that_run(world: World, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[int]:
    jobs = [world.submit(expected=10_000.0, **(first or {})), world.submit(expected=20_000.0, **(second or {}))]
    runs(world, *jobs)
    return jobs


# ---- who is asked ------------------------------------------------------------------------------------------------


def test_who_stands_last_is_asked_first():
    world = a_world(2)
    nearer, farther = two_that_run(world)
    world.submit(expected=10.0, array="0-1")
    assert world.asked_to_stop() == [farther, nearer]


def test_who_has_been_moved_before_is_asked_after_who_has_not():
    world = a_world(2)
    nearer, farther = two_that_run(world)
    short = world.submit(expected=10.0)
    assert world.asked_to_stop() == [farther]
    world.exits(farther, code=85, saved_step=1)
    world.started(short)
    world.exits(short)
    runs(world, farther)
    world.submit(expected=10.0, array="0-1")
    assert world.asked_to_stop() == [nearer, farther]


def test_a_lower_level_is_asked_before_an_equal():
    world = a_world(2)
    low, normal = two_that_run(world, {"qos": "low"})
    world.submit(expected=10.0, array="0-1")
    assert world.asked_to_stop() == [low, normal]


def test_who_is_over_its_quota_is_asked_before_a_lower_level():
    world = a_world(2, limits=LimitRules(quota={"ann": 1.0, "bob": 2.0}))
    low, over = two_that_run(world, {"qos": "low"})
    world.submit(by="bob", expected=10.0, array="0-1")
    assert world.asked_to_stop() == [over, low]


@pytest.mark.parametrize("final", [{"requeue": False}, {"max_requeues": 0}])
def test_nobody_is_asked_by_an_equal_who_would_not_come_back(final: dict[str, Any]):
    world = a_world(1)
    job = world.submit(expected=10_000.0, **final)
    runs(world, job)
    world.submit(expected=10.0)
    assert world.asked_to_stop() == []


def test_it_is_asked_at_the_very_moment_at_which_it_has_run_for_min_run():
    policy = PolicyRules(PolicyName.SRTF, min_run=300.0, tick=0.0)
    world = World(1, rules=replace(Rules.default(), policy=policy))
    job = world.submit(expected=10_000.0)
    runs(world, job)
    world.submit(expected=10.0)
    world.passes(300)
    assert world.asked_to_stop() == [job]


# ---- for how many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calm", [True, False])
def test_nobody_is_asked_for_more_elements_than_may_run_at_once(calm: bool):
    world = a_world(2, calm=calm)
    _, farther = two_that_run(world)
    world.submit(expected=10.0, array="0-1%1")
    assert world.asked_to_stop() == [farther]


@pytest.mark.parametrize("calm", [True, False])
def test_nobody_is_asked_for_one_that_would_be_at_its_limit(calm: bool):
    world = a_world(2, limits=LimitRules(user={"bob": Limits(max_running=1)}), calm=calm)
    _, farther = two_that_run(world)
    world.submit(by="bob", expected=10.0, array="0-1")
    assert world.asked_to_stop() == [farther]


@pytest.mark.parametrize("calm", [True, False])
def test_nobody_within_a_quota_is_asked_for_one_that_would_be_over_its_own(calm: bool):
    world = a_world(2, limits=LimitRules(quota={"*": 1.0}), calm=calm)
    _, over = two_that_run(world)
    jobs = [world.submit(by="bob", expected=10.0, hold=True, gpu_type=kind) for kind in (None, "4090")]
    world.release(*jobs, by="bob")
    assert world.asked_to_stop() == [over]


@pytest.mark.parametrize("calm", [True, False])
def test_devices_that_one_has_been_promised_are_not_counted_for_the_next(calm: bool):
    world = a_world(2, calm=calm)
    nearer, farther = two_that_run(world)
    world.submit(expected=10.0)
    assert world.asked_to_stop() == [farther]
    world.submit(expected=20.0)
    assert world.asked_to_stop() == [nearer]


def test_the_part_of_an_account_is_its_share():
    world = a_world(4, PolicyName.LAS, fair_share=FairShare(shares=(("ann", 3.0),)))
    his = [world.submit(by="bob") for _ in range(4)]
    runs(world, *his)
    world.passes(HOUR)
    world.submit(array="0-3")
    assert len(world.asked_to_stop()) == 3


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_before_its_patience_is_over_nothing_is_kept_for_a_gang():
    world = a_world(2)
    world.started(world.submit(expected=100_000.0))
    gang, small = world.submit(gpus=2, expected=1000.0), world.submit(expected=5000.0)
    assert (world.where(gang), world.where(small)) == ((), (1,))


def test_of_two_past_their_patience_it_is_kept_for_the_higher_level():
    world = a_world(2)
    first, second = (world.submit(qos="high") for _ in range(2))
    world.started(first, second)
    normal, high = world.submit(gpus=2), world.submit(gpus=2, qos="high")
    world.passes(PATIENCE + 400)
    world.exits(first)
    assert world.where(world.submit(qos="high")) == ()
    world.exits(second)
    assert (world.where(normal), world.where(high)) == ((), (0, 1))


def test_nothing_is_kept_for_one_that_cannot_run_on_what_is_left_of_the_machine():
    world = a_world(3)
    world.started(world.submit(qos="high"))
    world.submit(gpus=3)
    world.passes(PATIENCE + 400)
    world.fails(2)
    assert world.where(world.submit()) == (1,)


def test_what_one_past_its_patience_leaves_goes_to_the_next_in_the_same_cycle():
    world = a_world(2)
    before = world.submit(gpus=2, qos="high")
    world.started(before)
    patient = world.submit()
    world.passes(PATIENCE + 400)
    other = world.submit(gpu_type="4090")
    world.submit(gpus=2)
    world.exits(before)
    assert (world.where(patient), world.where(other)) == ((0,), (1,))


def test_past_its_patience_a_job_keeps_nothing_from_another_account_whose_part_it_is():
    world = a_world(2, PolicyName.LAS)
    first, second = world.submit(), world.submit()
    world.started(first, second)
    waits = world.submit()
    world.passes(PATIENCE + 400)
    his = world.submit(by="bob")
    world.exits(second)
    assert (world.where(waits), world.where(his)) == ((), (1,))


def test_what_is_an_accounts_part_is_kept_for_it_but_not_from_higher_levels():
    """Ann's gang has a right to two devices, of which bob's jobs, too young to be asked, leave one open."""
    world = World(4, rules=replace(Rules.default(), policy=PolicyRules(PolicyName.LAS, min_run=600.0, tick=0.0)))
    runs(world, *(world.submit(by="bob") for _ in range(3)))
    gang = world.submit(gpus=2)
    assert (world.where(gang), world.where(world.submit(by="bob"))) == ((), ())
    assert world.where(world.submit(by="bob", qos="high")) == (3,)


# ---- for what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "gpus", "asked"), [(100.0, 1, False), (100.0, 2, True), (130.0, 1, True)])
def test_moving_is_paid_for_by_device_and_so_is_what_it_brings(left: float, gpus: int, asked: bool):
    """A minute for each of the two devices that it has, against the time for which the other would wait."""
    world = a_world(2)
    pair = world.submit(gpus=2, expected=left)
    runs(world, pair)
    world.submit(gpus=gpus, expected=10.0)
    assert world.asked_to_stop() == [pair] * asked


def test_what_it_brings_ends_when_the_first_of_those_who_would_be_moved_ends():
    world = a_world(2)
    runs(world, world.submit(expected=50.0), world.submit(expected=20_000.0))
    world.submit(gpus=2, expected=10.0)
    assert world.asked_to_stop() == []
