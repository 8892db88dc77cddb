import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.errors import UsageError
from gpusched.model.units import format_duration, format_size, parse_duration, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "mib"),
    [("10G", 10240), ("10GiB", 10240), ("10240MiB", 10240), ("512M", 512), ("1.5g", 1536), ("2 TB", 2 << 20)],
)
def test_sizes_are_binary_whatever_the_spelling(text, mib):
    assert parse_size(text) == mib


@pytest.mark.parametrize("text", ["", "G", "ten", "-1G", "0G", "5K", "1e3G", "1G2", "٣G", "9" * 40 + "G"])
def test_a_malformed_size_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert "20G" in caught.value.hint


def test_a_size_without_a_unit_is_refused_naming_both_readings():
    with pytest.raises(UsageError) as caught:
        parse_size("24")
    assert "24G or 24M" in caught.value.hint


@given(st.integers(1, 1 << 30))
def test_a_formatted_size_reads_back_exactly(mib):
    assert parse_size(format_size(mib)) == mib


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:05", 131405),
        ("90s", 90),
        ("45m", 2700),
        ("2h", 7200),
        ("1d12h", 129600),
        ("1.5h", 5400),
    ],
)
def test_slurms_six_forms_and_suffixes_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["0", "0:00", "unlimited", "INFINITE"])
def test_zero_and_unlimited_mean_no_limit(text):
    assert parse_duration(text) is None


@pytest.mark.parametrize("text", ["", "h", "1:2:3:4", "1-", "-5", "2h1d", "1x", "1-12h", "9" * 50, "999999999", "1 2"])
def test_a_malformed_time_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert "2:00:00" in caught.value.hint


@given(st.integers(1, 36500 * 86400))
def test_a_formatted_duration_reads_back_exactly(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


def test_durations_are_written_as_squeue_writes_them():
    assert [format_duration(s) for s in (0, 42.9, 7200, 129600, None)] == [
        "0:00",
        "0:42",
        "2:00:00",
        "1-12:00:00",
        "unlimited",
    ]


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2m", 120), ("90", 90), ("0", 0), ("0.5", 0.5)])
def test_a_grace_period_is_in_seconds_unless_it_says_otherwise(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1:30", "-1", "soon", "9" * 33, "nan", "inf"])
def test_a_malformed_grace_period_is_refused(text):
    with pytest.raises(UsageError, match="cannot be read"):
        parse_seconds(text)
