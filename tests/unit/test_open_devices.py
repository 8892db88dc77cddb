"""Pools of open devices against what plain counting says; an engine whose stories nobody reads decides the same."""

from __future__ import annotations

import random

import pytest
from builders import World

from gpusched.model.policy import Placement
from gpusched.policy.pool import Member, Pool

SIZES = (8, 8, 4, 1, 8)


def members() -> list[Member]:
    devices = [(group, number) for group, size in enumerate(SIZES) for number in range(size)]
    return [Member(f"{group}-{number}", f"node {group}", 1000) for group, number in devices]


def best_fit(opened: list[str], count: int) -> list[str] | None:
    """Of the groups in which so many are open the one with the fewest, of these the first; its lowest devices."""
    of_groups = [[uuid for uuid in opened if uuid.startswith(f"{group}-")] for group in range(len(SIZES))]
    fitting = [uuids for uuids in of_groups if len(uuids) >= count]
    return min(fitting, key=len)[:count] if fitting else None


@pytest.mark.parametrize("seed", range(20))
def test_a_gang_gets_the_lowest_devices_of_the_group_that_it_fits_best(seed: int) -> None:
    chance = random.Random(seed)
    pool, uuids = Pool(members(), Placement.PACK), [member.uuid for member in members()]
    opened: set[str] = set()
    for _ in range(200):
        uuid = chance.choice(uuids)
        pool.flip(uuid, uuid not in opened)
        opened ^= {uuid}
        in_order = [uuid for uuid in uuids if uuid in opened]
        assert pool.open_uuids() == in_order
        assert pool.open == len(in_order)
        for count in (1, 3, 8):
            assert pool.pick(count) == best_fit(in_order, count)


def test_a_gang_larger_than_a_group_gets_whole_ones_and_the_rest_where_it_fits_best() -> None:
    pool = Pool(members(), Placement.PACK)
    for member in members():
        pool.flip(member.uuid, True)
    picked = pool.pick(17)
    assert picked is not None
    assert [uuid.partition("-")[0] for uuid in picked] == ["0"] * 8 + ["1"] * 8 + ["3"]
    pool.flip("3-0", False)
    picked = pool.pick(17)
    assert picked is not None
    assert picked[-1] == "2-0"


def test_preferred_groups_are_the_fullest_ones_where_no_group_is_large_enough() -> None:
    pool = Pool(members(), Placement.PREFER)
    for uuid in ("0-0", "0-1", "1-3", "2-0", "2-1", "2-2"):
        pool.flip(uuid, True)
    assert pool.pick(4) == ["2-0", "2-1", "2-2", "0-0"]


@pytest.mark.parametrize("placement", list(Placement))
def test_what_a_machine_could_hold_follows_the_devices_that_fail(placement: Placement) -> None:
    pool = Pool(members(), placement)
    for member in members():
        pool.enable(member.uuid, +1)
    for number, uuid in enumerate(("0-0", "1-0", "4-7", "3-0")):
        for count in range(31):
            assert pool.could_hold(count) is pool.has_place(count, pool.able_in)
            assert pool.ever_holds(count) is pool.has_place(count, pool.sizes)
        assert pool.could_hold(8) is (number < 3 or placement is not Placement.PACK)
        pool.enable(uuid, -1)


def test_without_stories_everything_else_is_the_same() -> None:
    told, silent = World(2), World(2)
    silent.engine.state.story = False
    for world in (told, silent):
        low = world.submit(gpus=2, qos="low")
        world.started(low)
        high = world.submit(qos="high")
        world.exits(low, code=85, saved_step=3)
        assert world.where(high) == (0,)
    assert told.engine.state.jobs == silent.engine.state.jobs
    assert told.store.load() == silent.store.load()
    assert told.store.story(1)
    assert not silent.store.story(1)
