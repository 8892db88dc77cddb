"""The speed of elastic jobs on numbers of devices that they were not measured on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.job import Speed
from gpusched.policy.speedup import measured, speedup, step_seconds, with_speed


def speeds(**rates: float) -> tuple[Speed, ...]:
    return tuple(Speed(int(name[1:]), rate) for name, rate in rates.items())


def test_without_measurements_a_doubling_brings_80_percent():
    assert speedup((), 1, 2) == pytest.approx(1.6)
    assert 1.6 < speedup((), 1, 4) < 1.6 * 1.6  # and less each time


def test_one_measurement_moves_the_assumption_to_where_it_was_made():
    one = speeds(n2=10.0)
    assert step_seconds(one, 2) == 0.1
    assert speedup(one, 2, 4) == pytest.approx(1.6)
    assert speedup(one, 2, 1) < 1


def test_two_measurements_are_met_exactly_and_decide_between_and_behind():
    two = speeds(n1=10.0, n2=19.0)
    assert (step_seconds(two, 1), step_seconds(two, 2)) == (1 / 10, 1 / 19)
    assert 30 < 1 / step_seconds(two, 4) < 38  # Amdahl: nearly linear, and a little less
    wide = speeds(n1=10.0, n4=31.0)
    assert 10 < 1 / step_seconds(wide, 2) < 31


def test_the_nearest_two_measurements_count():
    three = speeds(n1=10.0, n2=20.0, n4=22.0)
    assert speedup(three, 4, 8) < 1.06  # the last doubling gave a tenth
    assert 1 / step_seconds(three, 3) == pytest.approx(21.3, abs=0.1)


def test_where_more_devices_were_no_faster_still_more_are_not_either():
    worse = speeds(n2=10.0, n4=9.0)
    assert speedup(worse, 2, 4) == pytest.approx(0.9)
    assert speedup(worse, 2, 8) == pytest.approx(0.9) and speedup(worse, 4, 8) == 1.0
    assert speedup(worse, 2, 3) < 1  # between the two
    assert speedup(worse, 2, 1) < 1  # one device is expected to be slower than two, as usual


def test_more_than_linear_is_not_carried_on():
    lucky = speeds(n1=10.0, n2=25.0)
    assert speedup(lucky, 2, 4) == pytest.approx(2.0)


def test_a_new_measurement_takes_the_place_of_an_old_one():
    two = with_speed(with_speed((), Speed(4, 2.0)), Speed(1, 1.0))
    assert two == (Speed(1, 1.0), Speed(4, 2.0))
    assert with_speed(two, Speed(4, 3.0)) == (Speed(1, 1.0), Speed(4, 3.0))
    assert measured(two, 4) and not measured(two, 2)


points = st.dictionaries(st.integers(1, 64), st.floats(1e-3, 1e6), max_size=5)


@given(points, st.integers(1, 64))
def test_a_step_always_takes_some_time_and_measured_steps_take_what_was_measured(rates, gpus):
    told = tuple(Speed(n, rates[n]) for n in sorted(rates))
    seconds = step_seconds(told, gpus)
    assert 0 < seconds < float("inf")
    if gpus in rates:
        assert seconds == 1 / rates[gpus]


@given(points.filter(bool))
def test_behind_the_last_measurement_nothing_gets_slower_and_nothing_more_than_linear(rates):
    told = tuple(Speed(n, rates[n]) for n in sorted(rates))
    last = told[-1].gpus
    assert 1.0 - 1e-9 <= speedup(told, last, 2 * last) <= 2.0 + 1e-9
