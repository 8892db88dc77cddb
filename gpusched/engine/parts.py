"""What a request's key means: whole rows, or some of the elements that wait in a row. Those are taken apart only when
the request is granted: one that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpusched.engine.folding import split
from gpusched.engine.following import resolve
from gpusched.engine.likes import ranges
from gpusched.engine.turn import State, Turn
from gpusched.model import spans
from gpusched.model.errors import UsageError
from gpusched.model.evolve import evolve
from gpusched.model.job import Job
from gpusched.model.jobset import Key, read_key
from gpusched.model.spans import Span, Spans


@dataclass(frozen=True, slots=True)
class Part:
    """A row, of which `inside` is meant; empty: all of it."""

    row: Job
    inside: Spans = ()
    outside: Spans = ()

    @property
    def job(self) -> Job:
        """What is meant, as it would be as a row of its own."""
        return self.row if not self.outside else _as_a_row(self.row, self.inside)

    def apart(self, turn: Turn) -> list[Job]:
        """Take what is meant out of its row. Returns the rows that are just that."""
        if not self.outside:
            return [self.row]
        return split(turn, self.row, self.inside, self.outside)[0]


def _as_a_row(row: Job, elements: Spans) -> Job:
    assert row.array is not None
    first, *others = elements
    rest = (first.part(1, first.length - 1), *others) if first.length > 1 else tuple(others)
    array = evolve(row.array, index=first.first)
    return evolve(row, id=array.array_id + first.offset, array=array, folded=rest)


def named(row: Job, key: Key) -> Job | None:
    """What the key names of a row, as it would be as a row of its own; None if that is nothing."""
    if row.array is None:
        return row if key.chosen is None else None
    if key.chosen is None:
        if key.job_id == row.array.array_id or not row.folded:
            return row
        element = spans.with_offset(row.elements, key.job_id - row.array.array_id)
        return None if element is None else _as_a_row(row, (element,))
    inside, outside = spans.cut(row.elements, key.chosen)
    if not inside:
        return None
    return _as_a_row(row, inside) if outside else row


def parts_of(state: State, text: str) -> tuple[list[Part], str | None]:
    """What a key means in the rows that the engine keeps, and the key of what it names and is not there."""
    try:
        key = read_key(text)
    except UsageError:
        return [], text
    if key.chosen is not None:
        return _elements(state, key, key.chosen)
    rows = resolve(state, text)
    if len(rows) == 1 and rows[0].array is not None and rows[0].array.array_id != key.job_id:
        element = spans.with_offset(rows[0].elements, key.job_id - rows[0].array.array_id)
        if element is not None:
            return _cut(rows, [element.indices]), None
    return [Part(row) for row in rows], None if rows else text


def _elements(state: State, key: Key, chosen: tuple[range, ...]) -> tuple[list[Part], str | None]:
    if key.single is not None:
        row = state.element(key.job_id, key.single)
        parts = [] if row is None else _cut([row], chosen)
    else:
        parts = _cut(state.elements(key.job_id), chosen)
    found = ranges(part.job for part in parts)
    missing = spans.cut([Span(0, part.start, len(part), part.step) for part in chosen], found)[1]
    if not missing:
        return parts, None
    listed = spans.text(sorted(missing, key=lambda span: span.first))
    alone = spans.size(missing) == 1
    return parts, f"{key.job_id}_{listed}" if alone else f"{key.job_id}_[{listed}]"


def _cut(rows: Iterable[Job], chosen: Iterable[range]) -> list[Part]:
    wanted, parts = list(chosen), []
    for row in rows:
        inside, outside = spans.cut(row.elements, wanted)
        if inside:
            parts.append(Part(row, inside, outside))
    return parts


def let_go(state: State, keys: Iterable[str]) -> tuple[str, ...]:
    """Those of the keys that name an array of which rows of ended elements are kept by the store alone."""
    known = state.arrays.known
    return tuple(key for key in keys if key.isdigit() and int(key) in known and known[int(key)].let_go)
