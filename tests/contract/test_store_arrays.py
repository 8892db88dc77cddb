"""Rows that stand for many elements of an array, by the same rules in both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.model.changes import Changes, StoryCopy, StoryLine
from gpusched.model.evolve import evolve
from gpusched.model.job import ArrayElement, Attempt, Job, JobSpec, Owner, Share
from gpusched.model.spans import Span
from gpusched.model.state import JobState, Outcome, OutcomeKind
from gpusched.ports import HistoryQuery, Store
from gpusched.store.memory import MemoryStore
from gpusched.store.sqlite import SqliteStore

SPEC, ALICE = JobSpec(("true",), "/home/alice"), Owner(1000, 1000, "alice")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.sqlite", ballast_bytes=0)
    )
    yield made
    made.close()


def row(number: int, index: int, *folded: Span, state: JobState = JobState.PENDING, array_id: int = 5) -> Job:
    array = ArrayElement(array_id, index, 100, 0, 198, 2, 4)
    ended = 1000.0 + number if state.final else None
    return Job(number, ALICE, SPEC, state, 10.0, array=array, folded=folded, ended_at=ended)


def lone(number: int) -> Job:
    return Job(number, ALICE, SPEC, JobState.PENDING, 10.0)


REST = row(7, 4, Span(3, 6, 10, 2), Span(14, 28), Span(20, 40, 80, 2))


def test_a_row_with_folded_elements_comes_back_the_same(store: Store) -> None:
    store.commit([Changes(jobs=(row(5, 0), REST), next_job_id=105)])
    assert store.job(7) == REST
    assert store.load().jobs == (row(5, 0), REST)
    assert store.load().next_job_id == 105, "ids of elements without a row are taken"
    assert store.array(5) == (row(5, 0), REST)
    assert store.job(7).key == "5_[4-24:2,28,40-198:2%4]"


def test_an_element_is_found_in_the_row_that_holds_it(store: Store) -> None:
    alone = row(18, 26, state=JobState.RUNNING)
    store.commit([Changes(jobs=(lone(4), row(5, 0), REST, alone, lone(105)))])
    assert [store.element(5, index) for index in (0, 4, 6, 24, 26, 28, 40, 198)] == [
        row(5, 0), REST, REST, REST, alone, REST, REST, REST,
    ]  # fmt: skip
    assert [store.element(5, index) for index in (2, 5, 30, 200)] == [None] * 4
    assert store.element(4, 0) is None
    assert [store.job(number) for number in (5, 8, 18, 19, 104, 105)] == [
        row(5, 0), REST, alone, REST, REST, lone(105),
    ]  # fmt: skip
    assert [store.job(number) for number in (6, 21, 106)] == [None] * 3


def test_of_an_array_with_many_rows_those_that_did_not_complete_can_be_had(store: Store) -> None:
    done, failed = JobState.COMPLETED, JobState.FAILED
    rows = tuple(row(5 + n, 2 * n, state=failed if n % 4 == 3 else done) for n in range(12))
    store.commit([Changes(jobs=rows)])
    assert store.array(5, 12) == rows
    assert [job.id for job in store.array(5, 11)] == [8, 12, 16]
    assert [job.id for job in store.array(5, 2)] == [8, 12]


def test_a_row_begins_with_what_was_told_of_the_row_its_elements_were_in(store: Store) -> None:
    def line(number: int, text: str) -> StoryLine:
        return StoryLine(number, 0, 5.0, "kind", text, "alice")

    store.commit([Changes(jobs=(row(5, 0),), story=(line(5, "submitted"),))])
    story = (line(5, "held"), StoryCopy(6, 5), line(5, "starts"), line(6, "waits"), StoryCopy(7, 6))
    store.commit([Changes(jobs=(row(6, 2), row(7, 4)), story=story)])
    told = {number: [each.text for each in store.story(number)] for number in (5, 6, 7)}
    assert told == {
        5: ["submitted", "held", "starts"], 6: ["submitted", "held", "waits"], 7: ["submitted", "held", "waits"],
    }  # fmt: skip
    assert store.story(7)[0] == line(7, "submitted")


def test_elements_that_were_cancelled_as_one_row_are_one_row_of_the_history(store: Store) -> None:
    gone = row(6, 2, Span(2, 4, 98, 2), state=JobState.CANCELLED)
    store.commit([Changes(jobs=(row(5, 0, state=JobState.COMPLETED), gone))])
    assert [job.key for job, _ in store.history(HistoryQuery())] == ["5_[2-198:2%4]", "5_0"]
    assert store.recent_keys(1000, 9) == ("5",)
    assert store.load().jobs == ()
    assert store.trim(9999.0) == 2 and store.array(5) == ()


def test_of_an_array_that_still_holds_devices_all_elements_are_known_again(store: Store) -> None:
    """Else what the array has come to would be told by that element alone."""
    outcome = Outcome(OutcomeKind.EXITED, 0)
    held = Attempt(6, 1, (Share("GPU-0"),), "boot", 100.0, 1000.0, ended=200.0, ended_at=1100.0, outcome=outcome)
    rows = (row(5, 0, state=JobState.FAILED), row(6, 2, state=JobState.COMPLETED))
    store.commit([Changes(jobs=rows, attempts=(held,))])
    assert store.load().jobs == rows
    assert store.trim(ended_before=5000.0) == 0
    store.commit([Changes(attempts=(evolve(held, released=True),))])
    assert store.load().jobs == ()
