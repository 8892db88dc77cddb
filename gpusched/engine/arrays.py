"""The arrays that the engine keeps: which row stands for which element, and what all elements together have come to.

An element of an array is in exactly one place: it has a row of its own, it is folded into an earlier row and waits with
it, or it has ended and its row was let go (the store keeps it, and the tally here still counts it). So a question about
a whole array costs the same for ten elements and for a hundred thousand. It decides nothing and changes no job.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gpusched.model import spans
from gpusched.model.job import Job
from gpusched.model.state import JobState


@dataclass(slots=True)
class Array:
    """One array. The counters are numbers of elements, also of those whose rows were let go."""

    rows: dict[int, int] = field(default_factory=dict)  # index of a row's own element → its job id
    folded: set[int] = field(default_factory=set)  # job ids of the rows that stand for further elements
    unstarted: int = 0  # have neither started nor ended
    unfinished: int = 0
    completed: int = 0
    failed: int = 0  # have ended otherwise
    let_go: int = 0

    def count(self, job: Job, by: int) -> None:
        many = by * job.size
        if job.state is JobState.COMPLETED:
            self.completed += many
        elif job.state.final:
            self.failed += many
        else:
            self.unfinished += many
            self.unstarted += many if job.started_at is None else 0

    def hold(self, job: Job) -> None:
        assert job.array is not None
        self.rows[job.array.index] = job.id
        if job.folded:
            self.folded.add(job.id)
        else:
            self.folded.discard(job.id)


@dataclass(slots=True)
class Arrays:
    """All arrays by their id. The engine's turn tells it of every row that comes, changes or goes."""

    known: dict[int, Array] = field(default_factory=dict)
    _ids: list[int] = field(default_factory=list)  # ascending

    # ---- what the engine puts in ----------------------------------------------------------------------------

    def put(self, old: Job | None, new: Job) -> None:
        """A row has changed from `old`, or is new."""
        if new.array is None:
            return
        array = self._array(new.array.array_id)
        if old is not None:
            array.count(old, -1)
        array.count(new, +1)
        array.hold(new)

    def take_in(self, job: Job) -> None:
        """A row comes from the store: at the start, or an ended one that a request names and that was let go."""
        if job.array is None:
            return
        array = self._array(job.array.array_id)
        if job.state.final and array.let_go >= job.size:
            array.let_go -= job.size  # it was counted all the time
        else:
            array.count(job, +1)
        array.hold(job)

    def let_go(self, job: Job) -> None:
        """The row of an ended element is kept by the store alone from now on."""
        if job.array is None:
            return
        array = self.known[job.array.array_id]
        del array.rows[job.array.index]
        array.folded.discard(job.id)
        array.let_go += job.size

    def forget(self, array_id: int) -> None:
        """Nobody needs to know of the array any more."""
        del self.known[array_id]
        del self._ids[bisect_left(self._ids, array_id)]

    def _array(self, array_id: int) -> Array:
        array = self.known.get(array_id)
        if array is None:
            array = self.known[array_id] = Array()
            self._ids.insert(bisect_left(self._ids, array_id), array_id)
        return array

    # ---- what is asked --------------------------------------------------------------------------------------

    def elements(self, jobs: Mapping[int, Job], array_id: int) -> list[Job]:
        """The rows of an array, in the order of their ids."""
        array = self.known.get(array_id)
        return [] if array is None else [jobs[job_id] for job_id in sorted(array.rows.values())]

    def element(self, jobs: Mapping[int, Job], array_id: int, index: int) -> Job | None:
        """The row in which the element is; None if there is no such element, or it was let go."""
        array = self.known.get(array_id)
        if array is None:
            return None
        job_id = array.rows.get(index)
        if job_id is not None:
            return jobs[job_id]
        return next((job for job in self._folded(jobs, array) if spans.with_index(job.folded, index)), None)

    def holding(self, jobs: Mapping[int, Job], job_id: int) -> Job | None:
        """The row into which the element with this job id is folded."""
        place = bisect_right(self._ids, job_id) - 1
        if place < 0:
            return None
        array_id = self._ids[place]
        rows = self._folded(jobs, self.known[array_id])
        return next((job for job in rows if spans.with_offset(job.folded, job_id - array_id)), None)

    def overlaps(self, jobs: Mapping[int, Job], job: Job) -> bool:
        """An element of this row from the store has another row by now."""
        array = self.known.get(job.array.array_id) if job.array is not None else None
        if array is None or job.array is None:
            return False
        if not job.folded:
            return self.element(jobs, job.array.array_id, job.array.index) is not None
        mine = [span.indices for span in job.elements]
        rows = (jobs[job_id] for job_id in array.rows.values())
        return any(spans.cut(row.elements, mine)[0] for row in rows)

    def _folded(self, jobs: Mapping[int, Job], array: Array) -> Iterator[Job]:
        return (jobs[job_id] for job_id in sorted(array.folded))
