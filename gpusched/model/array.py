"""Slurm's array grammar: `0-31:2%4` is 0, 2, … 30, at most four at once; `1,3,7` lists elements."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpusched.model import spans
from gpusched.model.errors import UsageError
from gpusched.model.spans import Span, Spans

MAX_ELEMENTS = 1_000_000  # of one array, whatever max_array says
MAX_LISTED = 100_000  # elements of an array whose ranges overlap or are mixed, so that they have to be sorted
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_HINT = "write for example 0-31, 0-31%4 (at most 4 at once), 0-30:2 (every second one) or 1,3,7"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """The elements of an array, ascending, and how many may run at once (0: no limit). `text` is what was typed."""

    spans: Spans
    limit: int
    text: str

    @property
    def indices(self) -> tuple[int, ...]:
        """All of them: as many numbers as there are elements."""
        return tuple(spans.indices(self.spans))

    @property
    def count(self) -> int:
        return spans.size(self.spans)

    @property
    def first(self) -> int:
        return self.spans[0].first

    @property
    def last(self) -> int:
        return self.spans[-1].last

    @property
    def step(self) -> int:
        """The distance of the first two indices; 1 if there is but one."""
        if self.spans[0].length > 1:
            return self.spans[0].step
        return self.spans[1].first - self.first if len(self.spans) > 1 else 1


def ranges(text: str, what: str, hint: str, most: int) -> list[range]:
    """The parts of a list such as `1-3,7,10-20:5`, in the order typed. Raises UsageError naming the bad part."""
    found: list[range] = []
    count = 0
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"{part.strip()!r} in {what} cannot be read", hint)
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first:
            raise UsageError(f"range {part.strip()!r} in {what} runs backwards", f"did you mean {last}-{first}?")
        if step == 0:
            raise UsageError(f"range {part.strip()!r} in {what} has a step of 0", hint)
        found.append(range(first, last + 1, step))
        count += len(found[-1])
        if count > most:
            raise UsageError(f"{what} has more than {most} elements", "split it into several")
    return found


def expand(text: str, what: str, hint: str) -> list[int]:
    """The numbers of a short list such as `1-3,7`, in the order typed. Raises UsageError naming the bad part."""
    return [number for part in ranges(text, what, hint, 10_000) for number in part]


def parse_array(text: str) -> ArraySpec:
    """Read the text of --array. Raises UsageError for duplicates, backward ranges, too many elements and nonsense."""
    text = text.strip()
    body, percent, limit_text = text.partition("%")
    if percent and not (limit_text.isascii() and limit_text.isdigit() and 0 < len(limit_text) <= 9):
        raise UsageError(f"the limit {'%' + limit_text!r} in array {_short(text)} is not a number", _HINT)
    if percent and int(limit_text) == 0:
        raise UsageError(f"array {_short(text)} would let 0 elements run at once", f"leave the '%0' away, or {_HINT}")
    parts = ranges(body, f"array {_short(text)}", _HINT, MAX_ELEMENTS)
    return ArraySpec(_ascending(parts, text), int(limit_text) if percent else 0, text)


def _ascending(parts: list[range], text: str) -> Spans:
    """The elements in ascending order. Raises UsageError if one is named twice."""
    if sum(map(len, parts)) <= MAX_LISTED and len(parts) > 1:
        seen: set[int] = set()
        for index in (index for part in parts for index in part):
            if index in seen:
                raise UsageError(f"array {_short(text)} names element {index} twice", "name every element once")
            seen.add(index)
        return spans.spans_of(sorted(seen))
    found: list[Span] = []
    offset = 0
    for part in sorted(parts, key=lambda part: part.start):
        if found and part.start <= found[-1].last:
            raise UsageError(
                f"in array {_short(text)}, the range that begins at {part.start} overlaps another, "
                f"and with more than {MAX_LISTED} elements they are not sorted",
                "name every element once, in ranges that lie behind each other",
            )
        found.append(Span(offset, part.start, len(part), part.step if len(part) > 1 else 1))
        offset += len(part)
    return tuple(found)


def _short(text: str) -> str:
    """In quotes; a list of thousands of numbers would hide the sentence."""
    return repr(text if len(text) <= 80 else text[:79] + "…")
