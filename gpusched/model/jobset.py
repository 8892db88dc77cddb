"""Which jobs people mean: `42`, `42_3` (array element), `42_[1-3]`, `10-12,20`, `@` (my last job), `@~1`.

A list of elements stays one key: of an array of a hundred thousand, nobody should have to send each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gpusched.model.array import MAX_ELEMENTS, ranges
from gpusched.model.errors import UsageError

_HINT = "write for example 42, 42_3 (array element), 42_[1-3], 10-12,20 or @ (your last job), @~1 (the one before)"
_ID = r"[1-9]\d{0,17}"
_ELEMENTS = r"(?:_(\d{1,9}|\[[^\]]*\]))?"
_ONE = re.compile(rf"({_ID}){_ELEMENTS}", re.ASCII)
_LAST = re.compile(rf"@(?:~(\d{{1,6}}))?{_ELEMENTS}", re.ASCII)
_RANGE = re.compile(rf"({_ID})-({_ID})", re.ASCII)
_MOST = 10_000


class Key(NamedTuple):
    """A job or a whole array (`chosen` None), or elements of an array."""

    job_id: int
    chosen: tuple[range, ...] | None = None

    @property
    def single(self) -> int | None:
        """The element, if exactly one is named."""
        if self.chosen is None or len(self.chosen) != 1 or len(self.chosen[0]) != 1:
            return None
        return self.chosen[0].start


@dataclass(frozen=True, slots=True)
class Last:
    """The caller's own latest submit (`back` 0) or an earlier one; `elements` (`3`, `[1-3]`): some of its array."""

    back: int = 0
    elements: str | None = None


def read_key(text: str) -> Key:
    """`42` → a job or array, `42_3` and `42_[1-3,7]` → elements. Raises UsageError."""
    found = _ONE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is not a job id", "a job id is a number (42), an array element 42_3 or 42_[1-3]")
    return Key(int(found[1]), None if found[2] is None else tuple(_chosen(found[2], text)))


def split_keys(text: str) -> list[str]:
    """The parts of `42,43_[1,3]`: at commas that are not inside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _chosen(text: str, part: str) -> list[range]:
    """The elements in `3` or `[1-3,7]`; a limit as the queue shows it (`[7-99%4]`) means nothing here."""
    body = text.strip("[]").partition("%")[0]
    return ranges(body, f"job {part!r}", _HINT, MAX_ELEMENTS)


def _elements(text: str | None, part: str) -> str | None:
    """`3` or `[1-3,7]`, checked."""
    if text is None:
        return None
    parts = _chosen(text, part)
    if len(parts) == 1 and len(parts[0]) == 1:
        return str(parts[0].start)
    return f"[{text.strip('[]').partition('%')[0].replace(' ', '')}]"


def _parse_part(part: str) -> list[str | Last]:
    if found := _LAST.fullmatch(part):
        return [Last(int(found[1] or 0), _elements(found[2], part))]
    if found := _RANGE.fullmatch(part):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise UsageError(f"job range {part!r} runs backwards", f"did you mean {last}-{first}?")
        if last - first >= _MOST:
            raise UsageError(f"job range {part!r} names more than {_MOST} jobs", "name fewer at once")
        return [str(number) for number in range(first, last + 1)]
    if found := _ONE.fullmatch(part):
        elements = _elements(found[2], part)
        return [found[1] if elements is None else f"{found[1]}_{elements}"]
    raise UsageError(f"{part!r} is not a job", _HINT)


def parse_job_set(words: Iterable[str]) -> list[str | Last]:
    """Job keys and markers in the order typed, each once. Raises UsageError naming the word that cannot be read."""
    found: dict[str | Last, None] = {}
    for word in words:
        for part in split_keys(word):
            found.update(dict.fromkeys(_parse_part(part.strip())))
    if not found:
        raise UsageError("no job named", _HINT)
    return list(found)
