"""When a dependency is met, still open, or can never be met; and who is told when a job ends."""

from __future__ import annotations

from enum import Enum

from gpusched.engine.turn import State, Turn
from gpusched.model.dependency import Clause, Dependency, Relation
from gpusched.model.errors import UsageError
from gpusched.model.job import Job
from gpusched.model.state import JobState


class Met(Enum):
    YES = "yes"
    OPEN = "open"
    NEVER = "never"


def resolve(state: State, key: str) -> list[Job]:
    """The jobs a key names: one job, one element, or all elements of an array. Empty: unknown."""
    head, underscore, index = key.partition("_")
    job_id = int(head)
    if underscore:
        return [j for j in state.elements(job_id) if j.array is not None and j.array.index == int(index)]
    elements = state.elements(job_id)
    if elements:
        return elements
    return [state.jobs[job_id]] if job_id in state.jobs else []


def check_known(state: State, dependency: Dependency, own_key: str | None = None) -> None:
    """Raises UsageError for a dependency on an unknown job or on itself."""
    for key in dependency.keys:
        if own_key is not None and key.partition("_")[0] == own_key.partition("_")[0]:
            raise UsageError(f"job {own_key} cannot depend on itself", "name another job")
        if not resolve(state, key):
            raise UsageError(f"dependency on job {key}: no such job", "see the jobs there are: gpusched queue --all")


def check_no_cycle(state: State, job: Job, dependency: Dependency) -> None:
    """Raises UsageError if one of the jobs depended on depends, over any number of steps, on `job`."""
    todo = [other for key in dependency.keys for other in resolve(state, key)]
    seen: set[int] = set()
    while todo:
        other = todo.pop()
        if other.id == job.id:
            raise UsageError(
                f"job {job.key} would wait for itself: {dependency} depends on it already", "remove one of the two"
            )
        if other.id not in seen:
            seen.add(other.id)
            if other.spec.dependency is not None and not other.state.final:
                todo += [j for key in other.spec.dependency.keys for j in resolve(state, key)]


def follow(state: State, job: Job) -> None:
    """Note whom the job waits for, so that it is looked at when they move."""
    if job.spec.dependency is None or job.dependency_met:
        return
    for key in job.spec.dependency.keys:
        for other in resolve(state, key):
            state.dependents[other.id].add(job.id)


def unfollow(state: State, job: Job) -> None:
    if job.spec.dependency is None:
        return
    for key in job.spec.dependency.keys:
        for other in resolve(state, key):
            state.dependents[other.id].discard(job.id)
            if not state.dependents[other.id]:
                del state.dependents[other.id]


def evaluate(state: State, job: Job) -> Met:
    dependency = job.spec.dependency
    if dependency is None:
        return Met.YES
    answers = [_clause(state, job, clause) for clause in dependency.clauses]
    if dependency.any:
        if Met.YES in answers:
            return Met.YES
        return Met.OPEN if Met.OPEN in answers else Met.NEVER
    if Met.NEVER in answers:
        return Met.NEVER
    return Met.OPEN if Met.OPEN in answers else Met.YES


def _clause(state: State, job: Job, clause: Clause) -> Met:
    if clause.relation is Relation.SINGLETON:
        rivals = state.singletons.get((job.owner.uid, job.spec.name), set())
        return Met.OPEN if any(other < job.id for other in rivals) else Met.YES
    answers = [_one(clause.relation, other) for key in clause.jobs for other in resolve(state, key)]
    if not answers or Met.NEVER in answers:
        return Met.NEVER
    return Met.OPEN if Met.OPEN in answers else Met.YES


def _one(relation: Relation, other: Job) -> Met:
    state = other.state
    match relation:
        case Relation.AFTER:
            return Met.YES if other.started_at is not None or state.final else Met.OPEN
        case Relation.AFTERANY:
            return Met.YES if state.final else Met.OPEN
        case Relation.AFTEROK:
            if state is JobState.COMPLETED:
                return Met.YES
            return Met.NEVER if state.final else Met.OPEN
        case Relation.AFTERNOTOK:
            if state is JobState.COMPLETED:
                return Met.NEVER
            return Met.YES if state.final else Met.OPEN
        case Relation.SINGLETON:
            raise AssertionError("singleton names no jobs")


def look_again(turn: Turn, job: Job) -> None:
    """Bring a waiting job's dependency flags up to date; a job whose dependency can never be met is cancelled."""
    if job.state is not JobState.PENDING or job.dependency_met:
        return  # a dependency that was met once stays met
    match evaluate(turn.state, job):
        case Met.YES:
            unfollow(turn.state, job)
            job = turn.put_job(job, dependency_met=True, dependency_failed=False)
            turn.tell(job, "dependency-met", "what it depended on is done")
        case Met.NEVER if job.spec.cancel_on_bad_dependency:
            because = f"its dependency {job.spec.dependency} can never be met"
            job = turn.put_job(job, state=JobState.CANCELLED, ended_at=turn.now.wall, ended_because=because)
            turn.tell(job, "cancelled", because)
        case Met.NEVER if not job.dependency_failed:
            turn.put_job(job, dependency_met=False, dependency_failed=True)
        case _:
            pass


def tell_dependents(turn: Turn, job: Job) -> None:
    """A job has started or ended: look at everyone who waits for it."""
    for other_id in sorted(turn.state.dependents.get(job.id, ())):
        other = turn.state.jobs.get(other_id)
        if other is not None:
            look_again(turn, other)
    if job.state.final:
        rivals = turn.state.singletons.get((job.owner.uid, job.spec.name))
        if rivals is not None:
            rivals.discard(job.id)
            for other_id in sorted(rivals):
                look_again(turn, turn.state.jobs[other_id])
            if not rivals:
                turn.state.singletons.pop((job.owner.uid, job.spec.name), None)
