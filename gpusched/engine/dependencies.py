"""When a dependency is met, still open, or can never be met; and who is told when a job starts, ends or comes back.

Ten thousand elements may wait for ten thousand others, so nothing here is kept per pair: waiting jobs are noted
under the key they typed, and are looked at only when the facts about that key have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from gpusched.engine.turn import Facts, State, Turn, unfinished_name
from gpusched.model.dependency import Clause, Dependency, Relation
from gpusched.model.errors import UsageError
from gpusched.model.job import Job
from gpusched.model.state import JobState

Memo = dict[str, Facts]


class Met(Enum):
    YES = "yes"
    OPEN = "open"
    NEVER = "never"


def resolve(state: State, key: str) -> list[Job]:
    """The jobs a key names: one job, one element, or all elements of an array. Empty: unknown, or not a key."""
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
    return [state.jobs[job_id]] if job_id in state.jobs else []


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def names(job: Job) -> tuple[str, ...]:
    """Every key that names the job, alone or with its whole array."""
    if job.array is None:
        return (str(job.id),)
    return (str(job.array.array_id), job.key, str(job.id))


def facts(state: State, key: str) -> Facts:
    """What the jobs of a key have come to, taken together."""
    jobs = resolve(state, key)
    return Facts(
        known=bool(jobs),
        unstarted=any(j.started_at is None and not j.state.final for j in jobs),
        unfinished=any(not j.state.final for j in jobs),
        completed=any(j.state is JobState.COMPLETED for j in jobs),
        failed=any(j.state.final and j.state is not JobState.COMPLETED for j in jobs),
    )


def check_known(state: State, dependency: Dependency, own_key: str | None = None) -> None:
    """Raises UsageError for a dependency on an unknown job or on itself."""
    for key in dict.fromkeys(dependency.keys):
        if own_key is not None and key.partition("_")[0] == own_key.partition("_")[0]:
            raise UsageError(f"job {own_key} cannot depend on itself", "name another job")
        if not resolve(state, key):
            raise UsageError(f"dependency on job {key}: no such job", "see the jobs there are: gpusched queue --all")


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
        rivals = [state.jobs[i] for i in state.singletons.get(name, ()) if i < waiter.id] if name else []
        if changed.id < waiter.id and unfinished_name(changed) == name:
            rivals.append(changed)
        found += rivals
    return found


def follow(state: State, job: Job) -> None:
    """Note whom the job waits for, so that it is looked at when they move."""
    if job.spec.dependency is None or job.dependency_met:
        return
    for key in job.spec.dependency.keys:
        state.dependents.setdefault(key, set()).add(job.id)
        if key not in state.told:
            state.told[key] = facts(state, key)


def unfollow(state: State, job: Job) -> None:
    if job.spec.dependency is None:
        return
    for key in job.spec.dependency.keys:
        waiting = state.dependents.get(key)
        if waiting is not None:
            waiting.discard(job.id)
            if not waiting:
                del state.dependents[key], state.told[key]


def evaluate(state: State, job: Job, memo: Memo | None = None) -> Met:
    """Whether the job's dependency is met now. `memo` spares looking the same keys up for many jobs."""
    dependency = job.spec.dependency
    if dependency is None:
        return Met.YES
    memo = {} if memo is None else memo
    answers = [_clause(state, job, clause, memo) for clause in dependency.clauses]
    if dependency.any:
        if Met.YES in answers:
            return Met.YES
        return Met.OPEN if Met.OPEN in answers else Met.NEVER
    if Met.NEVER in answers:
        return Met.NEVER
    return Met.OPEN if Met.OPEN in answers else Met.YES


def _clause(state: State, job: Job, clause: Clause, memo: Memo) -> Met:
    if clause.relation is Relation.SINGLETON:
        rivals = state.singletons.get((job.owner.uid, job.spec.name))
        return Met.OPEN if rivals and rivals[0] < job.id else Met.YES
    answers = []
    for key in clause.jobs:
        if key not in memo:
            memo[key] = facts(state, key)
        answers.append(_one(clause.relation, memo[key]))
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
        case Relation.SINGLETON:
            raise AssertionError("singleton names no jobs")


def look_again(turn: Turn, job: Job, memo: Memo | None = None) -> None:
    """Bring a waiting job's dependency flags up to date; a job whose dependency can never be met is cancelled."""
    if job.state is not JobState.PENDING or job.dependency_met:
        return  # a dependency that was met once stays met
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
    state, memo, look_at = turn.state, Memo(), set[int]()
    for key in dict.fromkeys(key for job in jobs for key in names(job)):
        if key in state.dependents:
            memo[key] = facts(state, key)
            if memo[key] != state.told[key]:
                state.told[key] = memo[key]
                look_at |= state.dependents[key]
    _look_at(turn, look_at, memo)


def settle(turn: Turn) -> None:
    """Tell those who wait for a job that has ended (or given up its name), until nothing more follows from it."""
    while turn.ended or turn.names_left:
        ended, turn.ended = turn.ended, []
        left, turn.names_left = turn.names_left, set()
        for job in ended:
            unfollow(turn.state, job)
        tell_dependents(turn, ended)
        # of the jobs with one name only the first can have become free to go
        _look_at(turn, {turn.state.singletons[name][0] for name in left if name in turn.state.singletons}, {})


def _look_at(turn: Turn, job_ids: set[int], memo: Memo) -> None:
    for job_id in sorted(job_ids):
        job = turn.state.jobs.get(job_id)
        if job is not None:
            look_again(turn, job, memo)
