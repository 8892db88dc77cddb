"""Elements of arrays in lists: waiting ones as one row, as in squeue, or one row each (`queue --array`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpusched.cli.output import Json
from gpusched.model import spans
from gpusched.model.array import MAX_ELEMENTS, ranges
from gpusched.model.spans import Span

_LONGEST = 40  # characters of a list of elements in a table


def elements_of(job: Json) -> list[Span]:
    """The elements that a JOB stands for."""
    text = job.get("array_indices") or str(job["array_index"])
    parts = ranges(text, "the daemon's answer", "", MAX_ELEMENTS)
    return [Span(0, part.start, len(part), part.step) for part in parts]


def count_of(jobs: Sequence[Json]) -> int:
    """How many jobs these rows are."""
    return sum(job.get("array_count") or 1 for job in jobs)


def fold_arrays(jobs: Sequence[Json]) -> list[Json]:
    """Elements of an array that wait next to each other for the same reason become one row."""
    rows: list[Json] = []
    groups: list[list[Json]] = []
    for job in jobs:
        folds = job.get("array_id") is not None and job.get("state") == "PENDING"
        same = folds and rows and all(rows[-1].get(key) == job.get(key) for key in ("array_id", "state", "reason"))
        if same:
            groups[-1].append(job)
        else:
            rows.append(job)
            groups.append([job] if folds else [])
    return [_folded(row, group) for row, group in zip(rows, groups, strict=True)]


def _folded(row: Json, group: Sequence[Json]) -> Json:
    count = count_of(group)
    if not group or count < 2:
        return row
    limit = f"%{row['array_limit']}" if row.get("array_limit") else ""
    elements = sorted((span for job in group for span in elements_of(job)), key=lambda span: span.first)
    key = f"{row['array_id']}_[{_short(spans.text(elements))}{limit}]"
    return {**row, "job": key, "array_count": count}


def _short(text: str) -> str:
    """A long list without its end."""
    if len(text) <= _LONGEST:
        return text
    return text[:_LONGEST].rpartition(",")[0] + ",…"


def each_element(jobs: Sequence[Json]) -> list[Json]:
    """One row for each job, also for those that wait as one."""
    return [element for job in jobs for element in _each(job)]


def _each(job: Json) -> Iterator[Json]:
    if (job.get("array_count") or 1) < 2:
        yield job
        return
    position = job.get("position")
    for place, index in enumerate(spans.indices(elements_of(job))):
        own: Json = {"job": f"{job['array_id']}_{index}", "array_index": index, "array_indices": str(index)}
        if place:
            own |= {"estimated_start": None, "id": None}  # what the row tells are those of its first element
        yield {**job, **own, "array_count": 1, **({"position": position + place} if position is not None else {})}
