"""The windows of reservations: calendars, clocks that change, overlaps and gaps."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.reservation import DAY, Repeat, Reservation, Window, clash, sharing, widest_gap, zone_of

ZURICH = "Europe/Zurich"
HOUR = 3600.0


def at(text: str, zone: str = ZURICH) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def made(start: float, hours: float = 1.0, repeat: Repeat | None = None, zone: str = "", device: str = "a"):
    end = start + hours * HOUR
    return Reservation("x", (device,), start, end, hours * HOUR, users=("ann",), repeat=repeat, zone=zone)


def starts(reservation: Reservation, count: int) -> list[str]:
    found = []
    for window in reservation.windows():
        found.append(datetime.fromtimestamp(window.start, ZoneInfo(ZURICH)).isoformat()[:16])
        if len(found) == count:
            return found
    return found


def test_a_single_one_has_one_window():
    assert list(made(100.0).windows()) == [Window(100.0, 3700.0)]


def test_nine_o_clock_stays_nine_o_clock_when_the_clocks_change():
    spring = made(at("2026-03-28T09:00"), repeat=Repeat.DAILY, zone=ZURICH)
    assert starts(spring, 3) == ["2026-03-28T09:00", "2026-03-29T09:00", "2026-03-30T09:00"]
    first, second, third = (window.start for window, _ in zip(spring.windows(), range(3), strict=False))
    assert (second - first, third - second) == (23 * HOUR, 24 * HOUR)
    autumn = made(at("2026-10-22T02:30"), repeat=Repeat.WEEKLY, zone=ZURICH)
    assert starts(autumn, 2) == ["2026-10-22T02:30", "2026-10-29T02:30"]


def test_a_time_that_the_change_leaves_out_comes_an_hour_later_and_the_next_day_as_ever():
    night = made(at("2026-03-28T02:30"), repeat=Repeat.DAILY, zone=ZURICH)
    assert starts(night, 3) == ["2026-03-28T02:30", "2026-03-29T03:30", "2026-03-30T02:30"]
    sunday = night.rearmed(at("2026-03-28T05:00"))
    assert sunday is not None
    assert starts(sunday, 2) == ["2026-03-29T03:30", "2026-03-30T02:30"]
    monday = sunday.rearmed(at("2026-03-29T05:00"))
    assert monday is not None
    assert starts(monday, 3) == ["2026-03-30T02:30", "2026-03-31T02:30", "2026-04-01T02:30"]


def test_it_is_armed_with_the_first_window_that_is_not_over():
    daily = made(0.0, repeat=Repeat.DAILY)
    assert daily.rearmed(HOUR - 1) is daily
    later = daily.rearmed(10 * DAY + HOUR)
    assert later is not None
    assert (later.start, later.end, later.begun) == (11 * DAY, 11 * DAY + HOUR, False)
    assert made(0.0).rearmed(HOUR) is None


@pytest.mark.parametrize(
    ("name", "hours"), [("+01:00", 1), ("-03:30", -3.5), ("UTC", 0), ("", 0), ("Mars/Base", 0), ("+x", 0), ("../x", 0)]
)
def test_zones_are_names_or_distances_and_nonsense_is_utc(name: str, hours: float):
    offset = zone_of(name).utcoffset(datetime(2026, 1, 1))
    assert offset is not None and offset.total_seconds() == hours * HOUR


def test_windows_are_told_in_the_zone_and_the_language_of_the_program():
    assert made(at("2026-11-23T09:00"), 8, zone=ZURICH).when() == "Mon 2026-11-23 09:00 to 17:00"
    long = made(at("2026-11-23T20:00"), 8, Repeat.WEEKLY, ZURICH)
    assert long.when() == "Mon 2026-11-23 20:00 to Tue 2026-11-24 04:00, weekly"


def test_other_devices_and_windows_that_touch_do_not_clash():
    assert clash(made(0.0), made(0.0, device="b")) is None
    assert clash(made(0.0), made(HOUR)) is None
    assert clash(made(0.0), made(HOUR - 1)) == Window(0.0, HOUR)


def test_repetitions_clash_where_they_meet_first():
    daily = made(0.0, repeat=Repeat.DAILY)
    assert clash(daily, made(5 * DAY - 1)) == Window(5 * DAY, 5 * DAY + HOUR)
    assert clash(made(5 * DAY - 1), daily) == Window(5 * DAY - 1, 5 * DAY - 1 + HOUR)
    assert clash(daily, made(2 * HOUR, 22, Repeat.DAILY)) is None


def test_repetitions_that_meet_only_when_the_clocks_change_clash():
    zurich = made(at("2026-11-01T09:00"), repeat=Repeat.DAILY, zone=ZURICH)
    utc = made(at("2026-11-01T07:00", "UTC"), repeat=Repeat.DAILY, zone="UTC")  # 08:00 in winter, 09:00 in summer
    found = clash(zurich, utc)
    assert found is not None
    assert datetime.fromtimestamp(found.start, ZoneInfo(ZURICH)).isoformat()[:16] == "2027-03-28T09:00"


@given(
    st.tuples(st.integers(0, 300), st.integers(1, 24), st.sampled_from([None, *Repeat])),
    st.tuples(st.integers(0, 300), st.integers(1, 24), st.sampled_from([None, *Repeat])),
)
def test_clashing_is_mutual_and_is_what_hours_say(one, other):
    first, second = (made(start * HOUR, hours, repeat) for start, hours, repeat in (one, other))
    hours = []
    for reservation in (first, second):
        taken = set()
        for window in reservation.windows():
            if window.start > 40 * DAY:
                break
            taken |= set(range(int(window.start / HOUR), int(window.end / HOUR)))
        hours.append(taken)
    assert (clash(first, second) is not None) == (clash(second, first) is not None) == bool(hours[0] & hours[1])


def test_the_widest_gap_is_between_all_repeating_windows_that_share_a_device():
    morning, evening = made(9 * HOUR, 3, Repeat.DAILY), made(21 * HOUR, 3, Repeat.DAILY)
    assert widest_gap((morning,)) == 21 * HOUR
    assert widest_gap((morning, evening)) == 9 * HOUR
    assert widest_gap((made(0.0, 24, Repeat.DAILY),)) == 0.0
    other = made(0.0, 5, Repeat.DAILY, device="b")
    assert sharing(morning, (morning, evening, other, made(0.0))) == (morning, evening)
