"""Making a reservation: who may, what is refused, and which devices it gets."""

from __future__ import annotations

import pytest
from builders import World, gpu
from reserving import HOUR, reserve, reserved, the, unreserve

from gpusched.model.errors import GpuschedError, NotAllowed, Refused, UsageError
from gpusched.model.reservation import Repeat


def refusal(world: World, **wanted: object) -> GpuschedError:
    with pytest.raises(GpuschedError) as caught:
        reserve(world, **wanted)  # type: ignore[arg-type]
    assert caught.value.hint
    assert not world.store.reservations(), "a refusal has left something behind"
    return caught.value



def test_only_an_administrator_makes_one_and_takes_it_back() -> None:
    world = World(1)
    assert isinstance(refusal(world, devices="0", by="ann"), NotAllowed)
    reserve(world, devices="0")
    with pytest.raises(NotAllowed):
        unreserve(world, by="ann")
    assert reserved(world) == (0,)


def test_the_answer_says_which_devices_for_whom_and_when() -> None:
    world = World(2)
    said = reserve(world, devices="1,0,1", users="ann,bob", accounts="vision", start_in=60, repeat=Repeat.WEEKLY)
    assert said == "devices 0,1 are reserved for ann, bob and account vision: Mon 1970-01-12 13:47 to 14:47, weekly"
    assert reserve(World(1), devices="0", users="").startswith("device 0 is reserved for maintenance: ")


def test_the_answer_names_who_runs_there_and_who_would_not_come_back() -> None:
    world = World(2)
    comes_back, ends = world.submit(), world.submit(requeue=False)
    said = reserve(world, devices="0,1", users="bob", start_in=HOUR)
    assert f"jobs {comes_back}, {ends} run there now" in said
    assert f"({ends} may not be requeued and would end there)" in said


def test_where_it_begins_at_once_they_are_asked_at_once() -> None:
    world = World(2)
    jobs = [world.submit(), world.submit()]
    said = reserve(world, devices="0,1", users="bob")
    assert said.endswith(f"; jobs {jobs[0]}, {jobs[1]} run there now and are asked to save and leave")
    assert sorted(world.asked_to_stop()) == jobs


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (False, {"time_limit": HOUR}),
        (False, {"expected": HOUR}),
        (False, {"time_limit": HOUR, "requeue": False}),
        (True, {"time_limit": 3 * HOUR}),
        (True, {"expected": 3 * HOUR}),
        (True, {"expected": HOUR, "requeue": False}),  # may run for longer, and would end there
        (True, {}),
    ],
)
def test_who_is_gone_before_it_begins_is_not_named(named: bool, wanted: dict[str, object]) -> None:
    world = World(1)
    job = world.submit(**wanted)
    world.started(job)
    said = reserve(world, devices="0", users="bob", start_in=2 * HOUR)
    assert (f"; job {job} runs there now" in said) is named


def test_who_is_leaving_already_is_not_named() -> None:
    world = World(2)
    for device, named in ((0, False), (1, True)):
        job = world.submit()
        world.started(job)
        world.cancel(job)  # it has 30 s
        said = reserve(world, f"r{device}", devices=str(device), users="bob", start_in=10.0 if named else HOUR)
        assert ("runs there now" in said) is named


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        ({"devices": "0", "start_in": -3600}, UsageError, "in the past"),
        ({"devices": "0", "duration": 0}, UsageError, "more than nothing"),
        ({"devices": "7"}, UsageError, "no device '7'"),
        ({"count": 3}, UsageError, "has 2 devices, not 3"),
        ({"count": 1, "gpu_type": "*h100*"}, UsageError, r"0 devices of type '\*h100\*'"),
        ({}, UsageError, "which devices, or how many"),
        ({"devices": "0", "count": 1}, UsageError, "which devices, or how many"),
        ({"devices": "0", "gpu_type": "*"}, UsageError, "named already"),
        ({"devices": "0", "repeat": Repeat.DAILY, "duration": 25 * HOUR}, UsageError, "overlap itself"),
        ({"name": "../x", "devices": "0"}, UsageError, "cannot be a reservation's name"),
        ({"name": "x" * 65, "devices": "0"}, UsageError, "cannot be a reservation's name"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: dict[str, object], kind: type, text: str) -> None:
    error = refusal(World(2), **wanted)
    assert isinstance(error, kind)
    assert pytest.raises(kind, match=text).matches(error)


def test_a_start_a_moment_ago_means_now() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=-5)
    assert the(world).start == world.now.wall
    assert the(world).begun


def test_two_reservations_of_one_device_at_one_time_are_refused_with_the_other_one_named() -> None:
    world = World(2)
    reserve(world, "one", devices="0,1", start_in=HOUR, duration=HOUR)
    with pytest.raises(Refused, match="device 1 is reserved at that time already: one for ann"):
        reserve(world, "two", devices="1", start_in=1.5 * HOUR)
    reserve(world, "after", devices="1", start_in=2 * HOUR)
    reserve(world, "before", devices="1", start_in=0, duration=HOUR)
    with pytest.raises(Refused, match="there is a reservation 'one' already"):
        reserve(world, "one", devices="0", start_in=20 * HOUR)


def test_a_repeating_reservation_is_in_the_way_in_all_its_windows() -> None:
    world = World(1)
    reserve(world, "daily", devices="0", start_in=HOUR, duration=HOUR, repeat=Repeat.DAILY)
    with pytest.raises(Refused):
        reserve(world, "later", devices="0", start_in=(5 * 24 + 1.5) * HOUR)
    with pytest.raises(Refused):
        reserve(world, "long", devices="0", start_in=2 * HOUR, duration=24 * HOUR)
    with pytest.raises(Refused):
        reserve(world, "weekly", devices="0", start_in=(3 * 24 + 1) * HOUR, repeat=Repeat.WEEKLY)
    reserve(world, "between", devices="0", start_in=2 * HOUR, duration=23 * HOUR, repeat=Repeat.WEEKLY)


def test_so_many_devices_are_those_that_are_free_first() -> None:
    world = World(4)
    for hours in (9, 1, None):
        world.started(world.submit(time_limit=hours and hours * HOUR))
    reserve(world, count=2, start_in=HOUR / 2)
    assert reserved(world) == (1, 3)  # free now, and after an hour


def test_devices_that_are_reserved_or_failed_are_not_chosen() -> None:
    world = World(4)
    reserve(world, "other", devices="0", start_in=HOUR)
    world.fails(1)
    reserve(world, count=2, start_in=HOUR)
    assert reserved(world) == (2, 3)
    with pytest.raises(Refused, match="only 0 of 4 devices"):
        reserve(world, "third", count=1, start_in=HOUR)


def test_devices_of_one_group_are_chosen_if_nobody_more_has_to_leave() -> None:
    gpus = [gpu(i) for i in range(4)]
    for each in gpus:
        each.group = "ab"[each.index // 2]
    world = World(*gpus)
    world.submit()
    reserve(world, count=2)
    assert reserved(world) == (2, 3)


@pytest.mark.parametrize(("start_in", "named"), [(HOUR, False), (HOUR / 4, True)])
def test_of_a_job_that_would_be_ended_for_good_what_is_left_of_its_limit_counts(start_in: float, named: bool) -> None:
    world = World(1)
    world.started(world.submit(requeue=False, time_limit=2 * HOUR))
    world.passes(1.5 * HOUR)
    said = reserve(world, devices="0", start_in=start_in, users="bob")
    assert ("job 1" in said) is named, said
