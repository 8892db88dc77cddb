"""When a dependency is met, still open, or can never be met; and who is told when a job starts, ends or comes back.

A row that stands for many elements of an array is decided as a whole, except where its elements differ: `singleton`
lets only the first of them go, `aftercorr` each when its like in the other array has ended. Those are taken out of the
row first, so that every row has one answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from gpusched.engine.folding import split
from gpusched.engine.following import corresponding, facts, followed, resolve, unfollow
from gpusched.engine.likes import by_outcome, ranges
from gpusched.engine.names import unfinished_name
from gpusched.engine.turn import Facts, State, Turn
from gpusched.model import spans
from gpusched.model.dependency import Clause, Dependency, Relation
from gpusched.model.errors import UsageError
from gpusched.model.evolve import evolve
from gpusched.model.job import Job
from gpusched.model.state import JobState

Memo = dict[str, Facts]


class Met(Enum):
    YES = "yes"
    OPEN = "open"
    NEVER = "never"


def check_known(state: State, dependency: Dependency, own_key: str | None = None) -> None:
    """Raises UsageError for a dependency on an unknown job or on itself."""
    for key in dict.fromkeys(dependency.keys):
        if own_key is not None and key.partition("_")[0] == own_key.partition("_")[0]:
            raise UsageError(f"job {own_key} cannot depend on itself", "name another job")
        if not known(state, key):
            raise UsageError(f"dependency on job {key}: no such job", "see the jobs there are: gpusched queue --all")


def known(state: State, key: str) -> bool:
    """There is such a job, element or array, as far as the engine keeps it."""
    return bool(resolve(state, key)) or (key.isdigit() and int(key) in state.arrays.known)


def by_element(state: State, dependency: Dependency) -> Dependency:
    """The same with elements of arrays named as such, where they were named by their job id: that may have no row."""

    def named(key: str) -> str:
        row = state.row(int(key)) if key.isdigit() and int(key) not in state.arrays.known else None
        if row is None or row.array is None:
            return key
        element = spans.with_offset(row.elements, int(key) - row.array.array_id)
        return key if element is None else f"{row.array.array_id}_{element.first}"

    clauses = tuple(evolve(clause, jobs=tuple(map(named, clause.jobs))) for clause in dependency.clauses)
    return evolve(dependency, clauses=clauses)


def check_no_cycle(state: State, job: Job) -> None:
    """Raises UsageError if a job that `job` (with its new spec) waits for waits, over any number of steps, for it."""
    todo, seen, looked_up = _waits_for(state, job, job, set()), set[int](), set[str]()
    while todo:
        other = todo.pop()
        if other.id == job.id:
            raise UsageError(
                f"job {job.key} would wait for itself: what {job.spec.dependency} names waits for it already",
                "remove one of the two dependencies",
            )
        if other.id not in seen and not other.state.final:
            seen.add(other.id)
            todo += _waits_for(state, other, job, looked_up)


def _waits_for(state: State, waiter: Job, changed: Job, looked_up: set[str]) -> list[Job]:
    """Whom `waiter` waits for, if `changed` were as it is here. Keys that were looked up are not looked up again."""
    dependency = waiter.spec.dependency
    if dependency is None:
        return []
    fresh = [key for key in dependency.keys if key not in looked_up]
    looked_up.update(fresh)
    found = [job for key in fresh for job in resolve(state, key)]
    if any(clause.relation is Relation.SINGLETON for clause in dependency.clauses):
        name = unfinished_name(waiter)
        rivals = [state.jobs[i] for i in state.names.of(state.jobs, name) if i < waiter.id]
        if changed.id < waiter.id and unfinished_name(changed) == name:
            rivals.append(changed)
        found += rivals
    return found


def evaluate(state: State, job: Job, memo: Memo | None = None) -> Met:
    """Whether the dependency of everything in the row is met now: OPEN also where its elements differ.

    `memo` spares looking the same keys up for many jobs.
    """
    dependency = job.spec.dependency
    if dependency is None:
        return Met.YES
    memo = {} if memo is None else memo
    answers = [_clause(state, job, clause, memo) for clause in dependency.clauses]
    if dependency.any:
        if Met.YES in answers:
            return Met.YES
        return Met.OPEN if Met.OPEN in answers else Met.NEVER
    return _all_of(answers)


def _clause(state: State, job: Job, clause: Clause, memo: Memo) -> Met:
    if clause.relation is Relation.SINGLETON:
        rivals = state.names.of(state.jobs, (job.owner.uid, job.spec.name))
        return Met.OPEN if job.folded or (rivals and rivals[0] < job.id) else Met.YES
    if clause.relation is Relation.AFTERCORR:
        return _all_of([_like(state, job, key) for key in clause.jobs])
    answers = []
    for key in clause.jobs:
        if key not in memo:
            memo[key] = facts(state, key)
        answers.append(_one(clause.relation, memo[key]))
    return _all_of(answers)


def _like(state: State, job: Job, key: str) -> Met:
    """aftercorr: an element for its like, a row for those of all its elements."""
    if job.array is None:
        return Met.NEVER
    if not job.folded:
        return _one(Relation.AFTEROK, facts(state, f"{key}_{job.array.index}"))
    outcomes = by_outcome(state, job.elements, int(key))
    if outcomes.differ or outcomes.waits:
        return Met.OPEN
    return Met.YES if outcomes.done else Met.NEVER


def _all_of(answers: list[Met]) -> Met:
    if Met.NEVER in answers:
        return Met.NEVER
    return Met.OPEN if Met.OPEN in answers else Met.YES


def _one(relation: Relation, others: Facts) -> Met:
    if not others.known:
        return Met.NEVER
    match relation:
        case Relation.AFTER:
            return Met.OPEN if others.unstarted else Met.YES
        case Relation.AFTERANY:
            return Met.OPEN if others.unfinished else Met.YES
        case Relation.AFTEROK if others.failed:
            return Met.NEVER
        case Relation.AFTERNOTOK if others.completed:
            return Met.NEVER
        case Relation.AFTEROK | Relation.AFTERNOTOK:
            return Met.OPEN if others.unfinished else Met.YES
        case Relation.SINGLETON | Relation.AFTERCORR:
            raise AssertionError(f"{relation} is not about all jobs of a key")


def look_again(turn: Turn, job: Job, memo: Memo | None = None) -> None:
    """Bring a waiting row's dependency flags up to date; a job whose dependency can never be met is cancelled."""
    if job.state is not JobState.PENDING or job.dependency_met:
        return  # a dependency that was met once stays met
    for row in _apart(turn, job):
        _decide(turn, row, memo)


def _apart(turn: Turn, job: Job) -> list[Job]:
    """The row, or the rows that it becomes because the dependency of its elements is not the same for all."""
    dependency = job.spec.dependency
    if dependency is None or not job.folded:
        return [job]
    rows = [job]
    for array_id in corresponding(dependency):
        rows = [part for row in rows for part in _by_outcome(turn, row, array_id)]
    if all(clause.relation is not Relation.SINGLETON for clause in dependency.clauses):
        return rows
    return [part for row in rows for part in _first_alone(turn, row)]


def _by_outcome(turn: Turn, job: Job, array_id: int) -> list[Job]:
    outcomes = by_outcome(turn.state, job.elements, array_id) if job.folded else None
    if outcomes is None or not outcomes.differ:
        return [job]
    inside = outcomes.done or outcomes.failed
    outside = tuple(sorted(span for group in outcomes if group is not inside for span in group))
    taken, left = split(turn, job, inside, outside)
    return [*taken, *(part for row in left for part in _by_outcome(turn, row, array_id))]


def _first_alone(turn: Turn, job: Job) -> list[Job]:
    """Of a row that waits for its own earlier elements, the first goes alone once nothing else holds it back."""
    if not job.folded or evaluate(turn.state, job) is not Met.OPEN:
        return [job]
    if evaluate(turn.state, evolve(job, folded=())) is not Met.YES:
        return [job]
    taken, left = split(turn, job, job.elements[:1], job.folded)
    return [*taken, *left]


def _decide(turn: Turn, job: Job, memo: Memo | None) -> None:
    match evaluate(turn.state, job, memo):
        case Met.YES:
            unfollow(turn.state, job)
            job = turn.put_job(job, dependency_met=True, dependency_failed=False)
            turn.tell(job, "dependency-met", "what it depended on is done")
        case Met.NEVER if job.spec.cancel_on_bad_dependency:
            because = f"its dependency {job.spec.dependency} can never be met"
            job = turn.put_job(
                job, state=JobState.CANCELLED, hold=None, ended_at=turn.now.wall, ended_because=because
            )
            turn.tell(job, "cancelled", because)
        case Met.NEVER if not job.dependency_failed:
            turn.put_job(job, dependency_failed=True)
        case Met.OPEN if job.dependency_failed:
            turn.put_job(job, dependency_failed=False)  # what had failed was requeued
        case _:
            pass


def tell_dependents(turn: Turn, jobs: Iterable[Job]) -> None:
    """Jobs have started, ended or come back: look at everyone for whom that makes a difference."""
    state = turn.state
    if not (state.dependents or state.likes):
        return
    jobs, memo, look_at = tuple(jobs), Memo(), set[int]()
    for key in dict.fromkeys(key for job in jobs for key in followed(state, job)):
        memo[key] = facts(state, key)
        if memo[key] != state.told[key]:
            state.told[key] = memo[key]
            look_at |= state.dependents[key]
    for job in jobs:
        if not job.state.live and job.array is not None:
            _tell_likes(turn, job, job.array.array_id)
    _look_at(turn, look_at, memo)


def _tell_likes(turn: Turn, job: Job, array_id: int) -> None:
    """Elements have ended, or come back: those that wait for just them are taken out of their row, and looked at."""
    for row_id in sorted(turn.state.likes.get(array_id, ())):
        row = turn.state.jobs[row_id]
        inside, outside = spans.cut(row.elements, ranges((job,)))
        if inside:
            for taken in split(turn, row, inside, outside)[0]:
                look_again(turn, taken)


def settle(turn: Turn) -> None:
    """Tell those who wait for a job that has ended (or given up its name), until nothing more follows from it."""
    if not (turn.state.dependents or turn.state.likes or turn.names_left):
        turn.ended = []  # nobody waits for anybody
        return
    while turn.ended or turn.names_left:
        ended, turn.ended = turn.ended, []
        left, turn.names_left = turn.names_left, set()
        for job in ended:
            if job.spec.dependency is not None:
                unfollow(turn.state, job)
        tell_dependents(turn, ended)
        # of the jobs with one name only the first can have become free to go
        _look_at(turn, {job_id for name in left for job_id in turn.state.names.of(turn.state.jobs, name)[:1]}, {})


def _look_at(turn: Turn, job_ids: set[int], memo: Memo) -> None:
    for job_id in sorted(job_ids) if job_ids else ():
        job = turn.state.jobs.get(job_id)
        if job is not None:
            look_again(turn, job, memo)
