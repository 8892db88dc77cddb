"""Gangs that the policy packs into groups: what they wait for is told, and blocks nobody if it cannot come."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import Gpu, World

from gpusched.model.policy import Placement, PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.policy.explain import Word

EVERY = pytest.mark.parametrize("name", list(PolicyName))


def a_world(name: PolicyName, sizes: tuple[int, ...] = (24, 24, 24, 24)) -> World:
    """Two groups of two devices of so many GiB."""
    rules = Rules(bypass_limit=1, policy=PolicyRules(name, placement=Placement.PACK))
    devices = [Gpu(i, total_mib=size * 1024, group="ab"[i // 2]) for i, size in enumerate(sizes)]
    return World(*devices, rules=replace(rules, cpu_jobs=4))


@EVERY
@pytest.mark.parametrize("sizes", [(24, 24, 24, 24), (24, 24, 24, 48)], ids=["alike", "of two sizes"])
def test_a_gang_waits_for_a_group_and_says_so(name: PolicyName, sizes: tuple[int, ...]):
    world = a_world(name, sizes)
    singles = [world.submit() for _ in range(4)]
    by_device = {world.where(job)[0]: job for job in singles}
    world.exits(by_device[0])
    world.exits(by_device[2])
    gang = world.submit(gpus=2)
    assert world.where(gang) == ()
    assert world.why(gang).word is Word.RESOURCES
    assert "not close together" in world.why(gang).text
    world.exits(by_device[3])
    assert world.where(gang) == (2, 3)


@EVERY
def test_a_gang_for_which_no_group_is_whole_enough_blocks_nobody(name: PolicyName):
    world = a_world(name)
    world.fails(0)
    world.fails(2)
    gang = world.submit(gpus=2)
    assert world.why(gang).word is Word.DEVICE_UNAVAILABLE
    for _ in range(4):
        single = world.submit()
        assert world.running() == {single}
        world.exits(single)
    world.recovers(0)
    assert world.where(gang) == (0, 1)
