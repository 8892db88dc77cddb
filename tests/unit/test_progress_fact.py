"""What a job tells of its progress becomes an event, if it makes sense: a job can report anything."""

import pytest

from gpusched.daemon.watch import progress_fact
from gpusched.model.events import AttemptProgressed
from gpusched.model.job import AttemptKey
from gpusched.ports import Observation

KEY = AttemptKey(3, 1)


def told(**line: object) -> AttemptProgressed | None:
    return progress_fact(KEY, Observation(pid=1, progress=line))


def test_step_time_and_total_are_told() -> None:
    assert told(step=12, time=5.5, total=100, epoch=2) == AttemptProgressed(KEY, 12.0, 5.5, 100.0)
    assert told(step=0, time=5) == AttemptProgressed(KEY, 0.0, 5.0, None)


@pytest.mark.parametrize(
    "line",
    [
        {}, {"step": 1}, {"time": 1.0}, {"step": "1", "time": 1.0}, {"step": True, "time": 1.0},
        {"step": float("nan"), "time": 1.0}, {"step": float("inf"), "time": 1.0}, {"step": 10**400, "time": 1.0},
        {"step": 1, "time": float("-inf")}, {"step": [1], "time": 1.0},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_not_told(line: dict[str, object]) -> None:
    assert told(**line) is None


def test_a_total_that_makes_no_sense_is_left_out() -> None:
    assert told(step=1, time=1.0, total="many") == AttemptProgressed(KEY, 1.0, 1.0, None)
