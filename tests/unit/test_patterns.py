"""Filename patterns, in Slurm's letters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.errors import UsageError
from gpusched.model.patterns import check, expand


def expanded(pattern: str, **change: Any) -> str:
    usual: dict[str, Any] = {
        "job_id": 42, "array_id": 40, "array_index": 7, "name": "train", "user": "alice", "restart": 2,
    }  # fmt: skip
    return expand(pattern, **{**usual, **change})


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("gpusched-%j.out", "gpusched-42.out"),
        ("%A_%a", "40_7"),
        ("%u/%x.%r.log", "alice/train.2.log"),
        ("%4j-%03a-%10A", "0042-007-0000000040"),
        ("100%%-%j", "100%-42"),
        ("%%j", "%j"),
        ("%5x", "train"),
        ("%1j", "42"),
        ("%99j", "0000000042"),
        ("%" + "9" * 5000 + "j", "0000000042"),
        ("plain", "plain"),
    ],
)
def test_patterns(pattern: str, name: str) -> None:
    assert expanded(pattern) == name


def test_a_job_outside_arrays_has_its_own_id_and_index_zero() -> None:
    assert expanded("%A_%a", array_id=None, array_index=None) == "42_0"


@pytest.mark.parametrize(
    ("pattern", "bad"), [("a%z", "%z"), ("%N.out", "%N"), ("half%", "%"), ("%5", "%5"), ("%4%", "%4%")]
)
def test_an_unknown_letter_lists_the_known_ones(pattern: str, bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        expanded(pattern)
    assert repr(bad) in caught.value.message
    assert all(letter in caught.value.hint for letter in ("%j", "%A", "%a", "%x", "%u", "%r", "%%"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".", "/abs", "a/b", "a\nb", "a\0b"])
def test_a_job_name_cannot_lead_to_another_directory(name: str) -> None:
    for pattern in ("logs/%x", "logs/%x/out", "logs/%x%x"):
        parts = expanded(pattern, name=name).split("/")
        assert len(parts) == pattern.count("/") + 1
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in "".join(parts) and "\n" not in "".join(parts)


@given(st.text(min_size=1), st.text(min_size=1))
def test_no_name_adds_a_path_part(name: str, user: str) -> None:
    assert expanded("a/%x/%u", name=name, user=user).count("/") == 2
    assert not {".", "..", ""} & set(expanded("a/%x/%u", name=name, user=user).split("/"))


def test_percent_signs_in_a_name_are_left_as_they_are() -> None:
    assert expanded("%x", name="50%j") == "50%j"


def test_patterns_are_checked_before_the_job_waits_for_hours() -> None:
    check("gpusched-%j.out")
    for bad in ("", "a\0b", "%q"):
        with pytest.raises(UsageError):
            check(bad)
