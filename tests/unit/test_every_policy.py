"""What holds under every policy alike: the limits of arrays, who blocks whom, and that preemption does not dawdle."""

from __future__ import annotations

import pytest
from builders import World, gpu

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules

EVERY = pytest.mark.parametrize("policy", list(PolicyName))
CALM = pytest.mark.parametrize("policy", [name for name in PolicyName if not name.preemptive])
STRICT = pytest.mark.parametrize("policy", [PolicyName.FIFO, PolicyName.SJF])


def rules(policy: PolicyName) -> Rules:
    return Rules(policy=PolicyRules(policy))


@EVERY
@pytest.mark.parametrize("gpus", [0, 1])
def test_no_more_elements_of_an_array_run_at_once_than_it_says(policy: PolicyName, gpus: int):
    world = World(4, rules=rules(policy))
    first, second, third = world.submitted(array="0-2%2", gpus=gpus).job_ids
    assert world.running() == {first, second}
    world.exits(first)
    assert world.running() == {second, third}


@EVERY
def test_of_two_alike_each_asks_one_of_a_lower_level_to_leave_at_once(policy: PolicyName):
    world = World(2, rules=Rules(policy=PolicyRules(policy, tick=0.0, min_run=0.0)))
    low = [world.submit(qos="low") for _ in range(2)]
    world.started(*low)
    for job in low:
        world.watches(job)
    world.submit(qos="high", array="0-1")
    assert sorted(world.asked_to_stop()) == low


@STRICT
def test_who_could_use_the_devices_of_the_first_one_waits_behind_it_and_others_do_not(policy: PolicyName):
    world = World(gpu(0, "A100"), gpu(1, "H100"), gpu(2, "H100"), rules=rules(policy))
    world.started(world.submit(gpu_type="a100", expected=10.0))
    world.submit(gpu_type="a100", expected=10.0)
    either, other = world.submit(expected=20.0), world.submit(gpu_type="h100", expected=30.0)
    assert (world.where(either), world.where(other)) == ((), (1,))


@CALM
def test_of_a_lower_level_who_has_run_for_least_is_asked_first(policy: PolicyName):
    world = World(2, rules=rules(policy))
    young, old = world.submit(qos="low", hold=True), world.submit(qos="low")
    world.started(old)
    world.passes(100)
    world.release(young)
    world.started(young)
    world.submit(qos="high")
    assert world.asked_to_stop() == [young]


@CALM
def test_of_those_that_need_not_leave_after_all_the_one_that_has_run_for_longest_is_spared(policy: PolicyName):
    world = World(4, rules=rules(policy))
    pair, old, young = world.submit(qos="low", gpus=2), 2, 3
    for _ in (old, young):
        world.passes(100)
        world.submit(qos="low")
    world.started(pair, old, young)
    world.submit(qos="high", gpus=3)
    assert sorted(world.asked_to_stop()) == [pair, young]
