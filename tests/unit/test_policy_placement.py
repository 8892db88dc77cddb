"""Which devices a job gets: gangs, memory, sharing, types, partitions, best fit, foreign use."""

from __future__ import annotations

import pytest
from builders import GIB, World, gpu
from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.model.errors import UsageError
from gpusched.model.rules import Partition, Rules
from gpusched.model.state import JobState
from gpusched.policy.explain import Word

H100 = "NVIDIA H100 80GB HBM3"
WAITS = JobState.PENDING


def shared(gib: int, **more: object) -> dict[str, object]:
    return {"shared": True, "gpu_mem_mib": gib * GIB, **more}


def test_a_gang_gets_all_of_its_devices_or_none():
    world = World(4)
    world.submit(gpus=2)
    gang = world.submit(gpus=3)
    assert (world.where(gang), world.running()) == ((), {1})
    world.exits(1)
    assert world.where(gang) == (0, 1, 2)


def test_an_exclusive_job_takes_the_smallest_device_that_suffices():
    world = World(gpu(0, H100, 80), gpu(1, gib=48), gpu(2, gib=24))
    assert world.where(world.submit()) == (2,)
    assert world.where(world.submit(gpu_mem_mib=30 * GIB)) == (1,)
    assert world.where(world.submit(gpu_mem_mib=30 * GIB)) == (0,)


def test_equal_devices_are_taken_in_the_order_of_their_indexes():
    world = World(gpu(3), gpu(1), gpu(2))
    assert [world.where(world.submit()) for _ in range(3)] == [(1,), (2,), (3,)]


@pytest.mark.parametrize("pattern", ["h100", "H100", "*H100*", "nvidia h100 80gb hbm3", "NVIDIA H?00*"])
def test_a_device_type_is_a_glob_that_ignores_case_or_a_part_of_the_name(pattern):
    world = World(gpu(0), gpu(1, H100, 80))
    assert world.where(world.submit(gpu_type=pattern)) == (1,)


def test_a_glob_without_stars_around_it_is_taken_as_it_is():
    world = World(gpu(0, H100, 80))
    with pytest.raises(UsageError, match="no way to give"):
        world.submit(gpu_type="H100*")


def test_sharing_jobs_fill_one_device_before_they_touch_the_next():
    world = World(2)
    jobs = [world.submit(**shared(10)) for _ in range(4)]
    assert [world.where(job) for job in jobs] == [(0,), (0,), (1,), (1,)]
    late = world.submit(**shared(5))
    assert world.why(late).word is Word.RESOURCES
    assert "5G to share" in world.why(late).text


def test_exclusive_and_sharing_jobs_never_meet_on_a_device():
    world = World(1)
    sharing, also, alone = world.submit(**shared(4)), world.submit(**shared(4)), world.submit()
    assert world.states(sharing, also, alone) == ["STARTING", "STARTING", "PENDING"]
    world.exits(sharing)
    assert world.states(alone) == [WAITS]
    world.exits(also)
    late = world.submit(**shared(4))
    assert (world.where(alone), world.states(late)) == ((0,), [WAITS])


def test_shares_and_foreign_use_together_stay_within_the_device():
    world = World(1)
    world.foreign(0, 10 * GIB)
    first, second = world.submit(**shared(10)), world.submit(**shared(10))
    assert world.states(first, second) == ["STARTING", "PENDING"]
    assert world.why(second).word is Word.RESOURCES
    world.exits(first)
    big = world.submit(**shared(15))
    assert world.why(big).word is Word.FOREIGN_USE
    assert "device 0 (10G)" in world.why(big).text
    world.foreign(0, 0)
    assert world.states(second) == ["STARTING"]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 2), st.integers(0, 8)), max_size=25))
@PROFILE
def test_whatever_comes_and_goes_shares_never_exceed_what_a_device_has(steps):
    world = World(2)
    for gib, gpus, foreign in steps:
        world.foreign(gib % 2, foreign * GIB)
        if gib > 24:
            if world.running():
                world.exits(min(world.running()))
            continue
        world.submit(**shared(gib, gpus=gpus))
        for slot in world.engine.view.slots.values():
            assert slot.shared_mib <= slot.device.total_mib  # foreign use that came later cannot be helped
        newest = max(world.running(), default=0)
        for share in world.engine.view.live[newest].devices if newest == max(world.engine.state.jobs) else ():
            slot = world.engine.view.slots[share.uuid]
            assert slot.shared_mib + slot.device.foreign_mib <= slot.device.total_mib


def test_a_device_in_foreign_use_is_not_given_away_and_a_little_use_does_not_matter():
    world = World(2)
    world.foreign(0, 257)
    world.foreign(1, 256)
    first, second = world.submit(), world.submit()
    assert (world.where(first), world.states(second)) == ((1,), [WAITS])
    assert world.why(second).word is Word.RESOURCES  # the other one can still become free
    world.exits(first)
    gang = world.submit(gpus=2)
    assert world.why(gang).word is Word.FOREIGN_USE
    world.foreign(0, 0)
    assert world.why(gang).word is Word.RESOURCES
    world.exits(second)
    assert world.where(gang) == (0, 1)


def test_memory_that_nothing_explains_counts_as_foreign_use_on_a_device_without_jobs():
    world = World(1)
    world.gpus[0].residual_mib = 700
    world.sample()
    assert world.why(world.submit()).word is Word.FOREIGN_USE


def test_a_job_stays_in_its_partition():
    partitions = {"default": Partition("default", ("0",)), "big": Partition("big", ("*h100*",))}
    world = World(gpu(0), gpu(1, H100, 80), rules=Rules(partitions=partitions))
    first, second, third = world.submit(), world.submit(), world.submit(partition="big")
    assert [world.where(j) for j in (first, second, third)] == [(0,), (), (1,)]
    with pytest.raises(UsageError, match="no way to give 2 devices here") as caught:
        world.submit(partition="big", gpus=2)
    assert caught.value.hint == "there are: 1 × NVIDIA H100 80GB HBM3 with 80G in partition 'big'"


def test_a_partition_gives_a_time_limit_and_refuses_longer_ones():
    partitions = {"default": Partition("default", max_time=3600.0, default_time=60.0)}
    world = World(1, rules=Rules(partitions=partitions))
    job = world.submit()
    assert world.job(job).spec.time_limit == 60.0
    with pytest.raises(UsageError, match="longer than partition"):
        world.submit(time_limit=3601.0)


def test_a_device_that_changes_its_identity_is_judged_anew():
    world = World(gpu(0), gpu(1, H100, 80))
    world.submit(gpu_type="h100")
    waiting = world.submit(gpu_type="h100")
    world.gpus[0].name, world.gpus[0].total_mib = H100, 80 * GIB
    world.sample()
    assert world.where(waiting) == (0,)
