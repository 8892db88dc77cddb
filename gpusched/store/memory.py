"""A store that forgets at the end of the process, with the same rules as the durable one: for simulations and tests.

Both pass the same contract tests. It keeps the engine's own objects, so it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from gpusched.model import spans
from gpusched.model.changes import AccountUsage, Changes, Snapshot, StoryCopy, StoryLine
from gpusched.model.job import Attempt, Environment, Job
from gpusched.model.past import LEARNED, REMEMBERED, Past, taught
from gpusched.model.reservation import Reservation
from gpusched.model.state import JobState
from gpusched.ports import HistoryQuery, StoreError
from gpusched.store.rows import end_of


class MemoryStore:
    """ports.Store on dictionaries."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._attempts: dict[int, dict[int, Attempt]] = {}  # of job id, by number
        self._environments: dict[str, Environment] = {}
        self._story: dict[int, list[StoryLine]] = {}
        self._usage: dict[str, AccountUsage] = {}
        self._reservations: dict[str, Reservation] = {}
        self._next_job_id = 1

    # ---- writing ----------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Changes]) -> None:
        """All of it or nothing. Raises StoreError for an attempt or a line of a job that is not there."""
        known, new = self._jobs, None
        for change in changes:
            for row in (*change.attempts, *change.story):
                if row.job_id in known:
                    continue
                if new is None:
                    new = {job.id for other in changes for job in other.jobs}
                if row.job_id not in new:
                    what = f"job {row.job_id} is not there: its attempt or story cannot be kept"
                    raise StoreError(what, "this is a bug")
        for change in changes:
            self._apply(change)

    def _apply(self, change: Changes) -> None:
        for job in change.jobs:
            self._jobs[job.id] = job
            if job.id >= self._next_job_id:
                self._next_job_id = job.id + 1
        for attempt in change.attempts:
            of_job = self._attempts.get(attempt.job_id)
            if of_job is None:
                self._attempts[attempt.job_id] = {attempt.number: attempt}
            else:
                of_job[attempt.number] = attempt
        if change.story:
            self._tell(change)
        for used in change.usage:
            self._usage[used.account] = used
        if change.environments or change.reservations:
            self._apply_rare(change)
        if change.next_job_id is not None:
            self._next_job_id = max(self._next_job_id, change.next_job_id)

    def _apply_rare(self, change: Changes) -> None:
        for digest, environment in change.environments:
            self._environments.setdefault(digest, dict(environment))
        for reservation in change.reservations:
            self._reservations[reservation.name] = reservation

    def _tell(self, change: Changes) -> None:
        for line in change.story:
            of_job = self._story.setdefault(line.job_id, [])
            if isinstance(line, StoryCopy):
                of_job += [replace(told, job_id=line.job_id) for told in self._story.get(line.source, ())]
            else:
                of_job.append(line)

    def check(self) -> None:
        """Memory can always be written."""

    def trim(self, ended_before: float) -> int:
        """Forget jobs that ended before this wall time, except those that load() gives back, and reservations."""
        needed = self._needed()
        gone = []
        for job in self._jobs.values():
            end = end_of(job)
            if end is not None and end < ended_before and job.id not in needed:
                gone.append(job.id)
        for number in gone:
            del self._jobs[number]
            self._attempts.pop(number, None)
            self._story.pop(number, None)
        over = [r.name for r in self._reservations.values() if r.ended_at is not None and r.ended_at < ended_before]
        for name in over:
            del self._reservations[name]
        used = {job.spec.env_digest for job in self._jobs.values()}
        self._environments = {digest: env for digest, env in self._environments.items() if digest in used}
        return len(gone)

    # ---- reading ----------------------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        needed = self._needed()
        jobs = [job for job in self._jobs.values() if not job.state.final or job.id in needed]
        attempts: dict[tuple[int, int], Attempt] = {}
        for number, of_job in self._attempts.items():
            latest = max(of_job)
            unfinished = not self._jobs[number].state.final
            for attempt in of_job.values():
                if not attempt.released or (unfinished and attempt.number == latest):
                    attempts[attempt.key] = attempt
        return Snapshot(
            jobs=tuple(sorted(jobs, key=lambda job: job.id)),
            attempts=tuple(attempts[key] for key in sorted(attempts)),
            next_job_id=self._next_job_id,
            usage=tuple(self._usage[account] for account in sorted(self._usage)),
            reservations=tuple(reservation for reservation in self.reservations() if reservation.ended_at is None),
            past=self._past(),
        )

    def _past(self) -> tuple[Past, ...]:
        ran = [(end_of(job) or 0.0, job.id, job) for job in self._jobs.values() if job.state in LEARNED and job.ran > 0]
        latest = sorted(ran)[-REMEMBERED:]
        return tuple(past for _, _, job in latest if (past := taught(job)) is not None)

    def _needed(self) -> set[int]:
        """Ids of ended jobs that must be known all the same, because the engine refers to them."""
        named = {a.job_id for of_job in self._attempts.values() for a in of_job.values() if not a.released}
        # what an array has come to takes all of its elements
        named |= {job.array.array_id for job in map(self._jobs.__getitem__, list(named)) if job.array is not None}
        for job in self._jobs.values():
            if job.state.final:
                continue
            if job.array is not None:
                named.add(job.array.array_id)
            if job.spec.dependency is not None:
                named.update(int(key.partition("_")[0]) for key in job.spec.dependency.keys)
        return {
            job.id
            for job in self._jobs.values()
            if job.state.final and (job.id in named or (job.array is not None and job.array.array_id in named))
        }

    def environment(self, digest: str) -> Environment:
        return self._environments[digest]

    def job(self, job_id: int) -> Job | None:
        if job_id in self._jobs:
            return self._jobs[job_id]
        before = self._jobs.get(max((number for number in self._jobs if number < job_id), default=0))
        if before is None or before.array is None:
            return None
        array_id = before.array.array_id
        return next((job for job in self._folded(array_id) if spans.with_offset(job.folded, job_id - array_id)), None)

    def element(self, array_id: int, index: int) -> Job | None:
        for job in self.array(array_id):
            if job.array is not None and job.array.index == index:
                return job
        return next((job for job in self._folded(array_id) if spans.with_index(job.folded, index)), None)

    def _folded(self, array_id: int) -> list[Job]:
        """The rows of an array that stand for further elements."""
        return sorted((job for job in self.array(array_id) if job.folded), key=lambda job: job.id)

    def array(self, array_id: int, most: int | None = None) -> tuple[Job, ...]:
        rows = [job for job in self._jobs.values() if job.array is not None and job.array.array_id == array_id]
        rows.sort(key=lambda job: (job.array.index if job.array is not None else 0, job.id))
        if most is not None and len(rows) > most:
            rows = [job for job in rows if job.state is not JobState.COMPLETED][: max(0, most)]
        return tuple(rows)

    def attempts(self, job_id: int) -> tuple[Attempt, ...]:
        of_job = self._attempts.get(job_id, {})
        return tuple(of_job[number] for number in sorted(of_job))

    def story(self, job_id: int) -> tuple[StoryLine, ...]:
        return tuple(self._story.get(job_id, ()))

    def history(self, query: HistoryQuery) -> tuple[tuple[Job, tuple[Attempt, ...]], ...]:
        found = [(end, job.id, job) for job in self._jobs.values() if (end := end_of(job)) is not None]
        asked = [job for end, _, job in sorted(found, reverse=True) if _matches(job, end, query)]
        return tuple((job, self.attempts(job.id)) for job in asked[: max(0, query.limit)])

    def reservations(self) -> tuple[Reservation, ...]:
        return tuple(self._reservations[name] for name in sorted(self._reservations))

    def recent_keys(self, uid: int, limit: int) -> tuple[str, ...]:
        own = (job for job in self._jobs.values() if job.owner.uid == uid)
        first = sorted((job.id for job in own if job.array is None or job.array.array_id == job.id), reverse=True)
        return tuple(str(job_id) for job_id in first[:limit])

    def close(self) -> None:
        """Nothing to let go."""


def _matches(job: Job, end: float, query: HistoryQuery) -> bool:
    return (
        (query.since is None or end >= query.since)
        and (query.until is None or end <= query.until)
        and (not query.users or job.owner.user in query.users)
        and (not query.states or job.state in query.states)
        and (not query.ids or job.id in query.ids)
        and (not query.names or any(fnmatchcase(job.spec.name, name) for name in query.names))
    )
