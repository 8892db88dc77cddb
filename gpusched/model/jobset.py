"""Which jobs people mean: `42`, `42_3` (array element), `42_[1-3]`, `10-12,20`, `@` (my last job), `@~1`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gpusched.model.array import expand
from gpusched.model.errors import UsageError

_HINT = "write for example 42, 42_3 (array element), 42_[1-3], 10-12,20 or @ (your last job), @~1 (the one before)"
_ID = r"[1-9]\d{0,17}"
_ONE = re.compile(rf"({_ID})(?:_(\d{{1,9}}|\[[^\]]*\]))?", re.ASCII)
_LAST = re.compile(r"@(?:~(\d{1,6}))?(?:_(\d{1,9}|\[[^\]]*\]))?", re.ASCII)
_RANGE = re.compile(rf"({_ID})-({_ID})", re.ASCII)
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Last:
    """The caller's own latest submit (`back` 0) or an earlier one; `element` picks one of its array elements."""

    back: int = 0
    element: int | None = None


def _split(text: str) -> list[str]:
    """At commas that are not inside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _elements(text: str | None, part: str) -> list[int] | None:
    """The array elements a part names; None: the whole job."""
    if text is None:
        return None
    return expand(text.strip("[]"), f"job {part!r}", _HINT)


def _parse_part(part: str) -> list[str | Last]:
    if found := _LAST.fullmatch(part):
        elements = _elements(found[2], part)
        back = int(found[1] or 0)
        return [Last(back)] if elements is None else [Last(back, element) for element in elements]
    if found := _RANGE.fullmatch(part):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise UsageError(f"job range {part!r} runs backwards", f"did you mean {last}-{first}?")
        if last - first >= _MOST:
            raise UsageError(f"job range {part!r} names more than {_MOST} jobs", "name fewer at once")
        return [str(number) for number in range(first, last + 1)]
    if found := _ONE.fullmatch(part):
        elements = _elements(found[2], part)
        return [found[1]] if elements is None else [f"{found[1]}_{element}" for element in elements]
    raise UsageError(f"{part!r} is not a job", _HINT)


def parse_job_set(words: Iterable[str]) -> list[str | Last]:
    """Job keys and markers in the order typed, each once. Raises UsageError naming the word that cannot be read."""
    found: dict[str | Last, None] = {}
    for word in words:
        for part in _split(word):
            found.update(dict.fromkeys(_parse_part(part.strip())))
    if not found:
        raise UsageError("no job named", _HINT)
    return list(found)
