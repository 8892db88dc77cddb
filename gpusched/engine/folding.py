"""Elements of an array that wait as one row, and what becomes of them one by one.

At the submit an array is one row: its first element, with all others folded into it. Whatever concerns an element alone
(a start, a promise of devices, a request about it) takes it out of its row first. Ids stay what they are: element k has
the job id of the array plus k, whether it has a row or not. So the rest of a row begins with the next element's id,
waits behind the element that left, and has been told all that its row was told.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.engine.following import follow, unfollow
from gpusched.engine.turn import Turn
from gpusched.model.evolve import evolve
from gpusched.model.job import Job
from gpusched.model.spans import Spans

MOST_SPANS = 64  # of one row, which is written anew whenever an element leaves it; longer lists begin as several rows


def rows_of(job: Job, elements: Spans) -> Iterator[Job]:
    """Rows as `job` is, which together stand for these elements of its array. There is at least one element."""
    assert job.array is not None
    for at in range(0, len(elements), MOST_SPANS):
        first, *others = elements[at : at + MOST_SPANS]
        rest = (first.part(1, first.length - 1), *others) if first.length > 1 else tuple(others)
        yield evolve(
            job,
            id=job.array.array_id + first.offset,
            array=evolve(job.array, index=first.first),
            folded=rest,
            bypassed=0,
            earmark=(),
        )


def unfold_head(turn: Turn, job: Job) -> Job:
    """The row's first element becomes a row of its own, the rest waits on in another. Returns the element."""
    if not job.folded:
        return job
    return split(turn, job, job.elements[:1], job.folded)[0][0]


def unfold_ahead(turn: Turn) -> None:
    """Have as many elements stand alone as could run at once: policies that count all devices out anew look at each."""
    view = turn.view
    for array in list(turn.state.arrays.known.values()):
        for row_id in sorted(array.folded):
            job = turn.state.jobs[row_id]
            ahead = view.place(job)
            if ahead is None:
                continue
            for _ in range(_at_once(turn, job) - ahead):
                if not job.folded:
                    break
                rest = next(rows_of(job, job.folded)).id
                unfold_head(turn, job)
                job = turn.state.jobs[rest]


def _at_once(turn: Turn, job: Job) -> int:
    """How many jobs that ask for the same could run at once, if nobody else did."""
    request, suitable = job.spec.request, turn.view.suitable(job.spec.request)
    if request.gpus == 0:
        return turn.rules.cpu_jobs
    each = request.gpu_mem_mib if request.shared and request.gpu_mem_mib else 0
    places = sum(slot.device.total_mib // each for slot in suitable) if each else len(suitable)
    return places // request.gpus


def split(turn: Turn, job: Job, inside: Spans, outside: Spans) -> tuple[list[Job], list[Job]]:
    """Take the elements `inside` out of their row, of which `outside` are all others. Returns the rows of both."""
    if not outside:
        return [job], []
    taken, left = list(rows_of(job, inside)), list(rows_of(job, outside))
    for row in (*taken, *left):
        if row.id != job.id:
            turn.copy_story(row.id, job.id)
            follow(turn.state, turn.put_job(row))
    # The row itself last: until then somebody follows what it follows, so that what was told of that is not forgotten.
    unfollow(turn.state, job)
    same = next(row for row in (*taken, *left) if row.id == job.id)
    follow(turn.state, turn.put_job(job, folded=same.folded))
    return [turn.state.jobs[row.id] for row in taken], [turn.state.jobs[row.id] for row in left]
