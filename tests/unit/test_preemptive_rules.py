"""The policies that preempt, rule by rule: when it is looked again, who is asked, and who is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World
from reserving import HOUR, reserve

from gpusched.model.limits import LimitRules
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules

PREEMPTIVE = pytest.mark.parametrize("name", [name for name in PolicyName if name.preemptive])


def a_world(devices: int, name: PolicyName, **policy: object) -> World:
    return World(devices, rules=replace(Rules.default(), policy=PolicyRules(name, **policy)))  # type: ignore[arg-type]


def runs(world: World, *jobs: int) -> None:
    """They run, and can be asked to save and leave."""
    for job in jobs:
        world.started(job)
        world.watches(job)


def test_who_is_too_young_to_be_asked_is_asked_as_soon_as_it_has_run_for_min_run():
    world = a_world(1, PolicyName.SRTF, min_run=300.0)
    long = world.submit(expected=10_000.0)
    runs(world, long)
    world.submit(expected=100.0)
    world.passes(299)
    assert world.asked_to_stop() == []
    world.passes(61)  # nothing happens in this time but that it passes
    assert world.asked_to_stop() == [long]


def test_predictions_are_looked_at_again_while_nothing_happens():
    world = a_world(1, PolicyName.PREDICTED)
    long = world.submit()
    runs(world, long)
    world.submit()
    world.passes(1800)
    assert world.asked_to_stop() == [], "it stays until the other one is four times ahead"
    world.passes(1000)
    assert world.asked_to_stop() == [long]


@PREEMPTIVE
def test_jobs_without_devices_obey_the_limit_of_their_array(name: PolicyName):
    world = a_world(1, name)
    first, second = world.submitted(array="0-1%1", gpus=0).job_ids
    assert world.running() == {first}
    world.exits(first)
    assert world.running() == {second}


def test_by_count_too_nobody_is_asked_between_two_ticks():
    world = a_world(2, PolicyName.SRTF, calm=False)
    long = world.submit(expected=10_000.0)
    runs(world, long)
    world.submit(gpus=2, expected=10.0)
    assert world.asked_to_stop() == []
    world.passes(60)
    assert world.asked_to_stop() == [long]


AT_ONCE = {"min_run": 0.0, "tick": 0.0}  # who may be asked to leave is asked at once


def test_a_job_that_gave_its_devices_back_does_not_take_them_from_an_equal_that_got_them():
    world = a_world(1, PolicyName.SRTF, **AT_ONCE)
    polite = world.submit(expected=1000.0)
    runs(world, polite)
    world.preempt(polite)
    long = world.submit(expected=10_000.0)
    world.exits(polite, code=85)
    runs(world, long)
    world.passes(600)
    assert world.running() == {long}
    assert world.asked_to_stop() == [polite], "and nobody since"


def test_who_is_over_its_quota_does_not_ask_others_that_are_over_it():
    policy = PolicyRules(PolicyName.SRTF, **AT_ONCE)
    world = World(2, rules=replace(Rules.default(), limits=LimitRules(quota={"*": 1.0}), policy=policy))
    runs(world, world.submit(expected=10_000.0), world.submit(expected=20_000.0))
    world.submit(expected=100.0)
    assert world.asked_to_stop() == []
    world.submit(by="bob", expected=30_000.0)
    assert world.asked_to_stop() == [2], "who is within its own asks the one that is over it"


def test_what_one_may_not_have_before_a_reservation_begins_goes_to_one_behind_it_that_is_short_enough():
    world = a_world(2, PolicyName.LAS, between_accounts=False)
    world.started(world.submit())
    reserve(world, devices="1", start_in=2 * HOUR, users="root")
    long, short = world.submit(time_limit=3 * HOUR), world.submit(by="bob", time_limit=HOUR)
    assert (world.where(long), world.where(short)) == ((), (1,))
