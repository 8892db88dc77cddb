"""Slurm's array grammar: `0-31:2%4` is 0, 2, … 30, at most four at once; `1,3,7` lists elements."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpusched.model.errors import UsageError

MAX_ELEMENTS = 10_000
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_HINT = "write for example 0-31, 0-31%4 (at most 4 at once), 0-30:2 (every second one) or 1,3,7"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """The elements of an array, ascending, and how many may run at once (0: no limit). `text` is what was typed."""

    indices: tuple[int, ...]
    limit: int
    text: str


def expand(text: str, what: str, hint: str) -> list[int]:
    """The numbers of a list such as `1-3,7,10-20:5`, in the order typed. Raises UsageError naming the bad part."""
    numbers: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"{part.strip()!r} in {what} cannot be read", hint)
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        if last < first:
            raise UsageError(f"range {part.strip()!r} in {what} runs backwards", f"did you mean {last}-{first}?")
        if step == 0:
            raise UsageError(f"range {part.strip()!r} in {what} has a step of 0", hint)
        span = range(first, last + 1, step)
        if len(numbers) + len(span) > MAX_ELEMENTS:
            raise UsageError(f"{what} has more than {MAX_ELEMENTS} elements", "split it into several")
        numbers.extend(span)
    return numbers


def parse_array(text: str) -> ArraySpec:
    """Read the text of --array. Raises UsageError for duplicates, backward ranges, > 10000 elements and nonsense."""
    text = text.strip()
    body, percent, limit_text = text.partition("%")
    if percent and not (limit_text.isascii() and limit_text.isdigit() and 0 < len(limit_text) <= 9):
        raise UsageError(f"the limit {'%' + limit_text!r} in array {text!r} is not a number", _HINT)
    if percent and int(limit_text) == 0:
        raise UsageError(f"array {text!r} would let 0 elements run at once", f"leave the '%0' away, or {_HINT}")
    indices = expand(body, f"array {text!r}", _HINT)
    seen: set[int] = set()
    for index in indices:
        if index in seen:
            raise UsageError(f"array {text!r} names element {index} twice", "name every element once")
        seen.add(index)
    return ArraySpec(tuple(sorted(indices)), int(limit_text) if percent else 0, text)
