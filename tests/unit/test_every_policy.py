"""What holds under every policy alike: the limits of arrays, who blocks whom, and that preemption does not dawdle."""

from __future__ import annotations

import pytest
from builders import World, gpu

from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules

EVERY = pytest.mark.parametrize("policy", list(PolicyName))
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
