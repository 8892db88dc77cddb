"""The other small grammars: arrays, job sets, signals, begin times, what may be started."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.array import MAX_ELEMENTS, parse_array
from gpusched.model.begin import parse_begin
from gpusched.model.environment import check_exec_limits, strip_scheduler_variables
from gpusched.model.errors import UsageError
from gpusched.model.jobset import Last, parse_job_set
from gpusched.model.signals import parse_signal, signal_name

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 21, 12, 30, tzinfo=BERLIN)


def test_an_array_has_ranges_steps_lists_and_a_limit():
    spec = parse_array("0-31:10%4")
    assert (spec.indices, spec.limit, spec.text) == ((0, 10, 20, 30), 4, "0-31:10%4")
    assert parse_array("7,1-3").indices == (1, 2, 3, 7)
    assert parse_array("5").limit == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1-3,2", "names element 2 twice"),
        ("9-3", "runs backwards"),
        ("0-1000000", "more than 1000000 elements"),
        ("0-999999999", "more than 1000000 elements"),
        ("5," * 60000 + "5", "names element 5 twice"),
        ("0-99999,50000-150000", "the range that begins at 50000 overlaps another"),
        ("0-9%0", "0 elements"),
        ("0-9%x", "is not a number"),
        ("0-9:0", "step of 0"),
        ("", "cannot be read"),
        ("1,,2", "cannot be read"),
        ("-1", "cannot be read"),
        ("a-b", "cannot be read"),
    ],
)
def test_a_bad_array_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_array(text)


@given(st.sets(st.integers(0, 10**9 - 1), min_size=1, max_size=50), st.integers(0, 99))
def test_any_set_of_elements_can_be_written_as_a_list(indices, limit):
    text = ",".join(map(str, indices)) + (f"%{limit}" if limit else "")
    assert parse_array(text).indices == tuple(sorted(indices))
    assert parse_array(text).limit == limit


def test_the_largest_array_is_accepted_and_is_not_a_list():
    spec = parse_array(f"1-{MAX_ELEMENTS}")
    assert (spec.count, spec.first, spec.last, len(spec.spans)) == (MAX_ELEMENTS, 1, MAX_ELEMENTS, 1)


def test_a_job_set_names_ranges_elements_and_my_last_jobs():
    assert parse_job_set(["10-12,20", "@", "@~1", "42_3", "43_[1-2,5]", "@_4", "20"]) == [
        "10", "11", "12", "20", Last(0), Last(1), "42_3", "43_[1-2,5]", Last(0, "4"),
    ]  # fmt: skip
    assert parse_job_set(["43_[7-99%4]", "44_[3]", "@~2_[1,3]"]) == ["43_[7-99]", "44_3", Last(2, "[1,3]")]


@pytest.mark.parametrize("word", ["", "0", "x", "12-", "1-2_3", "42_", "42_[", "@~", "@@", "-5", "42_x", "4 2"])
def test_what_is_not_a_job_is_refused_with_an_example(word):
    with pytest.raises(UsageError) as caught:
        parse_job_set([word])
    assert "42" in caught.value.hint


@pytest.mark.parametrize(("word", "sentence"), [("20-10", "runs backwards"), ("1-99999999", "more than 10000")])
def test_an_absurd_job_range_is_refused(word, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_job_set([word])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("USR1@90", (10, 90.0)), ("sigterm", (15, 0.0)), ("12@2m", (12, 120.0)), ("B:USR2@60", (12, 60.0))],
)
def test_a_signal_may_carry_a_time_before_the_limit(text, parsed):
    assert parse_signal(text) == parsed


@pytest.mark.parametrize("text", ["KILL", "9", "SIGSTOP@10"])
def test_a_signal_that_nobody_can_catch_is_refused(text):
    with pytest.raises(UsageError, match="no program can catch it"):
        parse_signal(text)


@pytest.mark.parametrize("text", ["", "@90", "USR9", "0", "99", "TERM@", "TERM@soon", "1000000"])
def test_a_malformed_signal_is_refused(text):
    with pytest.raises(UsageError):
        parse_signal(text)


def test_signals_are_shown_by_name():
    assert (signal_name(10), signal_name(40)) == ("USR1", "40")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("14:00", "2026-11-21T14:00:00"),
        ("12:30", "2026-11-21T12:30:00"),
        ("09:15:30", "2026-11-22T09:15:30"),
        ("now", "2026-11-21T12:30:00"),
        ("now+2h", "2026-11-21T14:30:00"),
        ("now+1d12h", "2026-11-23T00:30:00"),
        ("today", "2026-11-21T12:30:00"),
        ("today 18:00", "2026-11-21T18:00:00"),
        ("tomorrow", "2026-11-22T00:00:00"),
        ("tomorrow noon", "2026-11-22T12:00:00"),
        ("noon", "2026-11-22T12:00:00"),
        ("midnight", "2026-11-22T00:00:00"),
        ("2026-12-24", "2026-12-24T00:00:00"),
        ("2026-12-24T18:00", "2026-12-24T18:00:00"),
    ],
)
def test_begin_times_mean_what_people_expect(text, expected):
    assert parse_begin(text, NOW).replace(tzinfo=None).isoformat() == expected


def test_a_begin_time_may_name_its_own_zone():
    assert parse_begin("2026-12-24T18:00Z", NOW) == datetime(2026, 12, 24, 19, 0, tzinfo=BERLIN)


def test_now_plus_a_bare_number_is_refused_naming_both_readings():
    with pytest.raises(UsageError) as caught:
        parse_begin("now+60", NOW)
    assert "60 seconds" in caught.value.hint and "60 minutes" in caught.value.hint


@pytest.mark.parametrize("text", ["", "25:00", "12:60", "later", "now-1h", "now+", "today x", "2026-13-01", "12"])
def test_a_malformed_begin_time_is_refused(text):
    with pytest.raises(UsageError):
        parse_begin(text, NOW)


def test_two_hours_are_two_hours_in_the_night_the_clocks_change():
    before = datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN)
    assert parse_begin("now+2h", before).timestamp() - before.timestamp() == 7200
    # and nine o'clock is nine o'clock on the other side
    assert parse_begin("09:00", before + timedelta(hours=9)).hour == 9


def test_variables_of_an_outer_scheduler_are_left_behind():
    kept = strip_scheduler_variables({"SLURM_JOB_ID": "1", "GPUSCHED_JOB_ID": "2", "PATH": "/bin", "MY_SLURM_X": "y"})
    assert kept == {"PATH": "/bin", "MY_SLURM_X": "y"}


@pytest.mark.parametrize(
    ("argv", "env", "sentence"),
    [
        ([], {}, "command is empty"),
        ([""], {}, "command is empty"),
        (["echo", "a\0b"], {}, "NUL"),
        (["echo"], {"A": "a\0b"}, "NUL"),
        (["echo", "x" * (3 << 20)], {}, "128 KiB"),
        (["echo", *["x" * 100_000] * 11], {}, "at most 1024 KiB"),
        (["echo"], {f"V{n}": "" for n in range(4097)}, "4097 variables"),
        (["echo"], {"A=B": "1"}, "no name"),
        (["echo", "\udcff"], {}, "not UTF-8"),
    ],
)
def test_what_could_never_be_started_is_refused_with_a_sentence(argv, env, sentence):
    with pytest.raises(UsageError, match=sentence):
        check_exec_limits(argv, env)


def test_an_ordinary_command_passes():
    check_exec_limits(["python", "", "-c", "print('ä')"], {"PATH": "/bin"})
