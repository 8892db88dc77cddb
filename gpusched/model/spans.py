"""Elements of an array as ranges: position in the array ↔ index, without a list of a hundred thousand numbers.

A job array numbers its elements by offset (0, 1, 2, …: the job id of the element is the array's id plus its offset)
and by index (what people typed: `1,3,5-99:2`). A `Span` is a run of elements whose offsets are consecutive and whose
indices are equally far apart. Spans of one row are ascending and never overlap.

It knows no jobs and reads no `--array`: see model/array.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import gcd
from typing import NamedTuple


class Span(NamedTuple):
    """`length` elements from `offset` on, with the indices `first`, `first + step`, …"""

    offset: int
    first: int
    length: int = 1
    step: int = 1

    @property
    def last(self) -> int:
        """The index of its last element."""
        return self.first + (self.length - 1) * self.step

    @property
    def end(self) -> int:
        """The offset behind its last element."""
        return self.offset + self.length

    @property
    def indices(self) -> range:
        return range(self.first, self.last + 1, self.step)

    def part(self, place: int, length: int) -> Span:
        """`length` of its elements, from its element number `place` on."""
        first = self.first + place * self.step
        return Span(self.offset + place, first, length, self.step if length > 1 else 1)


Spans = tuple[Span, ...]


def size(spans: Iterable[Span]) -> int:
    """How many elements there are."""
    return sum(span.length for span in spans)


def with_index(spans: Iterable[Span], index: int) -> Span | None:
    """The element with this index, as a span of its own; None if it is not here."""
    for span in spans:
        place, rest = divmod(index - span.first, span.step)
        if not rest and 0 <= place < span.length:
            return span.part(place, 1)
    return None


def with_offset(spans: Iterable[Span], offset: int) -> Span | None:
    """The element at this offset, as a span of its own; None if it is not here."""
    for span in spans:
        if span.offset <= offset < span.end:
            return span.part(offset - span.offset, 1)
    return None


def indices(spans: Iterable[Span]) -> Iterator[int]:
    """Every index, one after the other."""
    for span in spans:
        yield from span.indices


def cut(spans: Iterable[Span], chosen: Sequence[range]) -> tuple[Spans, Spans]:
    """The elements whose index is in one of the ranges, and the others."""
    inside: list[Span] = []
    outside: list[Span] = []
    for span in spans:
        place = 0
        for first, behind in _merged(runs for wanted in chosen for runs in _places(span, wanted)):
            if first > place:
                outside.append(span.part(place, first - place))
            inside.append(span.part(first, behind - first))
            place = behind
        if place < span.length:
            outside.append(span.part(place, span.length - place))
    return tuple(inside), tuple(outside)


def _places(span: Span, wanted: range) -> Iterator[tuple[int, int]]:
    """Runs [first, behind) of places in the span whose index is in the range (its step is above 0)."""
    first = max(0, -((span.first - wanted.start) // span.step))
    behind = min(span.length, (wanted.stop - 1 - span.first) // span.step + 1)
    every = wanted.step // gcd(span.step, wanted.step)
    if every == 1:
        # all of them are as far from the range's start as its step allows, or none is
        if first < behind and (span.first + first * span.step - wanted.start) % wanted.step == 0:
            yield first, behind
        return
    for place in range(first, min(behind, first + every)):
        if (span.first + place * span.step - wanted.start) % wanted.step == 0:
            for each in range(place, behind, every):
                yield each, each + 1


def _merged(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, behind in sorted(runs):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(behind, found[-1][1]))
        else:
            found.append((first, behind))
    return found


def spans_of(numbers: Sequence[int]) -> Spans:
    """The spans of ascending indices, with offsets from 0."""
    found: list[Span] = []
    at, many = 0, len(numbers)
    while at < many:
        step, end = 1, at + 1
        if end < many:
            step = numbers[end] - numbers[at]
            while end < many and numbers[end] - numbers[end - 1] == step:
                end += 1
            if step > 1 and end - at < 3:  # `1,3` is no range, and 3 may begin one
                step, end = 1, at + 1
        found.append(Span(at, numbers[at], end - at, step))
        at = end
    return tuple(found)


def text(spans: Iterable[Span]) -> str:
    """As people write it: `7-99,120-130:2,140`."""
    runs: list[list[int]] = []  # first, last, step, count
    for span in spans:
        if runs and _goes_on(runs[-1], span):
            run = runs[-1]
            run[2] = span.first - run[1]
            run[1], run[3] = span.last, run[3] + span.length
        else:
            runs.append([span.first, span.last, span.step, span.length])
    return ",".join(_run(*run) for run in runs)


def _goes_on(run: list[int], span: Span) -> bool:
    """The span continues the run with the same distance between indices."""
    gap = span.first - run[1]
    if gap < 1:
        return False
    if run[3] == 1:
        return gap == (span.step if span.length > 1 else 1)
    return gap == run[2] and (span.length == 1 or span.step == gap)


def _run(first: int, last: int, step: int, count: int) -> str:
    if count == 1:
        return str(first)
    return f"{first}-{last}" if step == 1 else f"{first}-{last}:{step}"
