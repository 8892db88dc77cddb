"""Gangs that the policy packs into groups: what they wait for is told, and blocks nobody if it cannot come."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import Gpu, World

from gpusched.model.errors import UsageError
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


def uneven(placement: Placement, name: PolicyName = PolicyName.BACKFILL) -> World:
    """Groups of four, one and one."""
    devices = [Gpu(i, group="aaaabc"[i]) for i in range(6)]
    return World(*devices, rules=Rules(policy=PolicyRules(name, placement=placement)))


def test_a_gang_that_no_groups_could_ever_hold_is_refused_with_what_would_do():
    world = uneven(Placement.PACK)
    with pytest.raises(UsageError) as caught:
        world.submit(gpus=6)
    assert "no way to give 6 devices close together here" in caught.value.message
    assert "the groups have 4, 1 and 1 devices" in caught.value.message
    assert caught.value.hint.startswith("ask for 5 (")
    job = world.submit(gpus=5)
    assert world.where(job) == (0, 1, 2, 3, 4)
    waits = world.submit(gpus=4)
    with pytest.raises(UsageError, match="close together"):
        world.update(waits, gpus=6)


@EVERY
@pytest.mark.parametrize("placement", [Placement.PREFER, Placement.COUNT])
def test_where_gangs_need_not_be_together_it_gets_what_there_is(name: PolicyName, placement: Placement):
    world = uneven(placement, name)
    assert world.where(world.submit(gpus=6)) == (0, 1, 2, 3, 4, 5)


def test_devices_that_have_failed_count_they_may_come_back():
    world = uneven(Placement.PACK)
    world.fails(4)
    world.fails(5)
    gang = world.submit(gpus=5)
    assert world.why(gang).word is Word.DEVICE_UNAVAILABLE
    world.recovers(5)
    assert world.where(gang) == (0, 1, 2, 3, 5)


@EVERY
def test_one_that_waits_since_before_gangs_were_packed_is_told_what_to_do_and_blocks_nobody(name: PolicyName):
    world = uneven(Placement.PREFER, name)
    first = world.submit()
    gang = world.submit(gpus=6)
    world.rules = replace(world.rules, policy=replace(world.rules.policy, placement=Placement.PACK))
    world.crash()
    reason = world.why(gang)
    assert reason.word is Word.DEVICE_UNAVAILABLE
    assert reason.next == f"it asks for another number of devices: gpusched update {gang} --gpus 5"
    behind = world.submit()
    assert world.running() == {first, behind}
    world.update(gang, gpus=4)
    assert len(world.where(gang)) == 4
