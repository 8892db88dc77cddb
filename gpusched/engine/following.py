"""Who waits for whom: what a key names, what that has come to, and the notes of who is to be told.

Ten thousand jobs may wait for an array of a hundred thousand, so nothing here is kept per pair: waiting rows are noted
under the key they typed, and are looked at only when the facts about that key have changed. What follows for them is
engine/dependencies.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.engine.turn import Facts, State
from gpusched.model import spans
from gpusched.model.dependency import Dependency, Relation
from gpusched.model.job import Job
from gpusched.model.state import JobState


def resolve(state: State, key: str) -> list[Job]:
    """The rows in which the jobs of a key are: one job, one element, or all elements of an array that the engine
    keeps. Empty: unknown, or not a key."""
    head, underscore, index = key.partition("_")
    if not _is_number(head) or (underscore and not _is_number(index)):
        return []
    job_id = int(head)
    if underscore:
        element = state.element(job_id, int(index))
        return [element] if element is not None else []
    elements = state.elements(job_id)
    if elements:
        return elements
    row = state.row(job_id)
    return [row] if row is not None else []


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def names(job: Job) -> tuple[str, ...]:
    """Every key that names exactly this job, or the first element of this row."""
    if job.array is None:
        return (str(job.id),)
    return (f"{job.array.array_id}_{job.array.index}", str(job.id))


def followed(state: State, job: Job) -> Iterator[str]:
    """The keys that somebody waits for and that name the job, one of the elements it stands for, or its array."""
    if job.array is not None and str(job.array.array_id) in state.dependents:
        yield str(job.array.array_id)
    yield from followed_alone(state, job)


def followed_alone(state: State, job: Job) -> Iterator[str]:
    """The same without its array."""
    if job.folded:
        yield from [key for key in state.dependents if _names_one_of(job, key)]
    else:
        # the id of the first element is that of the array, and as a key means the array
        keys = names(job) if job.array is None or job.array.array_id != job.id else names(job)[:1]
        yield from (key for key in keys if key in state.dependents)


def _names_one_of(job: Job, key: str) -> bool:
    assert job.array is not None
    head, underscore, index = key.partition("_")
    if underscore:
        return int(head) == job.array.array_id and spans.with_index(job.elements, int(index)) is not None
    offset = int(head) - job.array.array_id
    return offset != 0 and spans.with_offset(job.elements, offset) is not None


def facts(state: State, key: str) -> Facts:
    """What the jobs of a key have come to, taken together."""
    array = state.arrays.known.get(int(key)) if _is_number(key) else None
    if array is not None:
        return Facts(True, array.unstarted > 0, array.unfinished > 0, array.completed > 0, array.failed > 0)
    rows = resolve(state, key)
    return Facts(
        known=bool(rows),
        unstarted=any(j.started_at is None and not j.state.final for j in rows),
        unfinished=any(not j.state.final for j in rows),
        completed=any(j.state is JobState.COMPLETED for j in rows),
        failed=any(j.state.final and j.state is not JobState.COMPLETED for j in rows),
    )


def keys_of(job: Job) -> Iterator[str]:
    """The keys under which a waiting row is noted. One element that waits for its like waits for just that one."""
    if job.spec.dependency is None:
        return
    for clause in job.spec.dependency.clauses:
        alone = clause.relation is Relation.AFTERCORR and job.array is not None and not job.folded
        for key in clause.jobs:
            yield f"{key}_{job.array.index}" if alone and job.array is not None else key


def follow(state: State, job: Job) -> None:
    """Note whom the row waits for, so that it is looked at when they move."""
    if job.spec.dependency is None or job.dependency_met or job.state is not JobState.PENDING:
        return
    for key in keys_of(job):
        state.dependents.setdefault(key, set()).add(job.id)
        if key not in state.told:
            state.told[key] = facts(state, key)
    for array_id in likes(job):
        state.likes.setdefault(array_id, set()).add(job.id)


def unfollow(state: State, job: Job) -> None:
    for key in keys_of(job):
        waiting = state.dependents.get(key)
        if waiting is not None:
            waiting.discard(job.id)
            if not waiting:
                del state.dependents[key], state.told[key]
    for array_id in likes(job):
        rows = state.likes.get(array_id, set())
        rows.discard(job.id)
        if not rows:
            state.likes.pop(array_id, None)


def likes(job: Job) -> tuple[int, ...]:
    """The arrays whose elements those of this row wait for one by one (aftercorr)."""
    if job.spec.dependency is None or not job.folded:
        return ()
    return corresponding(job.spec.dependency)


def corresponding(dependency: Dependency) -> tuple[int, ...]:
    """The arrays that the dependency waits for element by element."""
    clauses = (clause for clause in dependency.clauses if clause.relation is Relation.AFTERCORR)
    return tuple(dict.fromkeys(int(key) for clause in clauses for key in clause.jobs))
