"""Whatever is committed, in whatever portions: the durable store, reopened, equals the one in memory."""

from __future__ import annotations

import dataclasses
import tempfile
import typing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpusched.model.changes import AccountUsage, Changes, StoryCopy, StoryLine
from gpusched.model.dependency import Clause, Dependency, Relation
from gpusched.model.digest import digest_of
from gpusched.model.job import ArrayElement, Attempt, Job, JobSpec
from gpusched.model.reservation import Reservation
from gpusched.model.spans import Span
from gpusched.model.state import JobState
from gpusched.ports import HistoryQuery, Store
from gpusched.store import rows
from gpusched.store.memory import MemoryStore
from gpusched.store.sqlite import SqliteStore

JOBS, ATTEMPTS = 6, 3  # few, so that rows meet each other
TEXT = st.text(max_size=8)
NUMBER = st.integers(-(2**53), 2**53)
TIME = st.floats(0, 4e9, allow_nan=False)
SIMPLE = {str: TEXT, int: NUMBER, float: TIME, bool: st.booleans()}
ENVIRONMENTS = tuple({"N": str(n)} for n in range(4))
DIGESTS = tuple(digest_of(environment) for environment in ENVIRONMENTS)


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, so that a field that is added to the model is tested from the first day."""
    if hint in SIMPLE:
        return SIMPLE[hint]
    if hint is Dependency:
        return dependencies
    if hint is Span:
        return st.builds(Span, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
    if dataclasses.is_dataclass(hint):
        return any_value(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return st.lists(of_type(arguments[0]), max_size=2).map(tuple)
    if arguments:  # something or None
        return st.one_of(*(st.none() if arg is type(None) else of_type(arg) for arg in arguments))
    return st.sampled_from(list(hint))


def any_value(cls: Any, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return st.builds(cls, **{name: fixed[name] if name in fixed else of_type(hints[name]) for name in names})


key = st.builds("{}{}".format, st.integers(1, JOBS), st.sampled_from(["", "_0", "_3"]))
relations = st.sampled_from([r for r in Relation if r is not Relation.SINGLETON])
clauses = st.builds(Clause, relations, st.lists(key, min_size=1, max_size=2).map(tuple))
dependencies = st.builds(Dependency, st.lists(clauses, min_size=1, max_size=2).map(tuple), st.booleans())
specs = any_value(JobSpec, env_digest=st.sampled_from(DIGESTS))
arrays = st.none() | any_value(ArrayElement, array_id=st.integers(1, JOBS), index=st.integers(0, 5))
ends = st.none() | st.integers(0, 20).map(float)
jobs = any_value(
    Job, id=st.integers(1, JOBS), spec=specs, array=arrays, ended_at=ends, submitted_at=st.integers(0, 20).map(float)
)
attempts = any_value(Attempt, job_id=st.integers(1, JOBS), number=st.integers(1, ATTEMPTS))
lines = any_value(StoryLine, job_id=st.integers(1, JOBS))
copies = st.builds(StoryCopy, st.integers(1, JOBS), st.integers(1, JOBS))
changes = st.builds(
    Changes,
    jobs=st.lists(jobs, max_size=3).map(tuple),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    environments=st.lists(st.sampled_from(list(zip(DIGESTS, ENVIRONMENTS, strict=True))), max_size=2).map(tuple),
    story=st.lists(lines | copies, max_size=4).map(tuple),
    next_job_id=st.none() | st.integers(1, 20),
    usage=st.lists(any_value(AccountUsage, account=st.sampled_from(["a", "b", "ä", ""])), max_size=3).map(tuple),
    reservations=st.lists(
        any_value(Reservation, name=st.sampled_from(["a", "b"]), ended_at=ends), max_size=2
    ).map(tuple),
)
batches = st.lists(st.lists(changes, max_size=3), max_size=4)


def everything(store: Store) -> dict[str, Any]:
    return {
        "load": store.load(),
        "jobs": [store.job(n) for n in range(2 * JOBS)],
        "elements": [store.element(n, index) for n in range(JOBS + 1) for index in range(9)],
        "arrays": [store.array(n) for n in range(JOBS + 1)],
        "attempts": [store.attempts(n) for n in range(JOBS + 1)],
        "story": [store.story(n) for n in range(JOBS + 1)],
        "history": store.history(HistoryQuery()),
        "failed": store.history(HistoryQuery(states=(JobState.FAILED,), since=5.0, limit=3)),
        "reservations": store.reservations(),
        "environments": [kept(store, digest) for digest in DIGESTS],
    }


def kept(store: Store, digest: str) -> Any:
    try:
        return store.environment(digest)
    except KeyError:
        return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(batches=batches, cut=st.floats(0, 25))
def test_any_changes_committed_and_reopened_equal_those_in_memory(batches: list[list[Changes]], cut: float) -> None:
    batches = [[known_only(change) for change in batch] for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        memory, path = MemoryStore(), Path(folder) / "jobs.sqlite"
        for batch in batches:
            memory.commit(batch)
            durable = SqliteStore(path, ballast_bytes=0)
            durable.commit(batch)
            durable.close()
        durable = SqliteStore(path, ballast_bytes=0)
        try:
            assert everything(durable) == everything(memory)
            before = durable.load()
            assert durable.trim(cut) == memory.trim(cut)
            assert everything(durable) == everything(memory)
            # A trim never takes what the engine needs; what it has learned from those that are forgotten it need not.
            assert dataclasses.replace(durable.load(), past=before.past) == before
        finally:
            durable.close()


def known_only(change: Changes) -> Changes:
    """The same with the rows of jobs that it brings itself: others are refused by both stores."""
    here = {job.id for job in change.jobs}
    return dataclasses.replace(
        change,
        attempts=tuple(a for a in change.attempts if a.job_id in here),
        story=tuple(line for line in change.story if line.job_id in here),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(job=jobs, attempt=attempts)
def test_any_job_and_attempt_survive_their_row(job: Job, attempt: Attempt) -> None:
    row = rows.job_row(job, {})
    assert rows.job_of_row((row[0], row[-2], row[-1]), {}) == job
    assert rows.attempt_of_row((1, 1, rows.attempt_row(attempt)[-1]), {}) == attempt
