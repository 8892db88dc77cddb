"""aftercorr: element i of an array waits for element i of another array, its like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpusched.engine.following import corresponding
from gpusched.engine.turn import State
from gpusched.model import spans
from gpusched.model.dependency import Dependency
from gpusched.model.errors import UsageError
from gpusched.model.job import Job
from gpusched.model.spans import Spans
from gpusched.model.state import JobState


class Outcomes(NamedTuple):
    """Elements by what their likes have come to. `failed`: ended otherwise, or not there."""

    done: Spans
    failed: Spans
    waits: Spans

    @property
    def differ(self) -> bool:
        return sum(map(bool, self)) > 1


def by_outcome(state: State, elements: Spans, array_id: int) -> Outcomes:
    """The elements by what their likes in that array have come to."""
    array = state.arrays.known.get(array_id)
    if array is not None and not array.unfinished and not array.failed:
        return Outcomes(elements, (), ())
    rows = state.elements(array_id)
    done, rest = spans.cut(elements, ranges(row for row in rows if row.state is JobState.COMPLETED))
    waits, failed = spans.cut(rest, ranges(row for row in rows if not row.state.final))
    return Outcomes(done, failed, waits)


def ranges(rows: Iterable[Job]) -> list[range]:
    """The indices of all elements of these rows."""
    found: list[range] = []
    single: list[int] = []
    for row in rows:
        if row.folded:
            found += [span.indices for span in row.elements]
        elif row.array is not None:
            single.append(row.array.index)
    return found + [span.indices for span in spans.spans_of(sorted(single))]


def check_likes(state: State, dependency: Dependency, elements: Spans) -> None:
    """Raises UsageError if a job is no array, or if one of its elements has no like to wait for."""
    for array_id in corresponding(dependency):
        if not elements:
            raise UsageError(
                f"aftercorr:{array_id} lets each element of an array wait for its like, and this job is no array",
                f"submit it with --array, or wait for all of them: afterok:{array_id}",
            )
        if array_id not in state.arrays.known:
            raise UsageError(f"aftercorr:{array_id}: job {array_id} is no array", f"write: afterok:{array_id}")
        missing = spans.cut(elements, ranges(state.elements(array_id)))[1]
        if missing:
            raise UsageError(
                f"aftercorr:{array_id}: array {array_id} has no element {spans.text(missing)}",
                "give both arrays the same elements",
            )
