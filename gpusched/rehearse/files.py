"""Comparing the files that a command wrote: JSON by its structure, everything else byte by byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MOST = 20  # differences told of one file
_BLOCK = 1 << 20
_NOT_JSON = object()


@dataclass(frozen=True, slots=True)
class Unequal:
    """One thing that differs. `place` is the same for the same thing in other runs; `detail` is for people."""

    place: str
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"


def compare(name: str, one: str, other: str) -> list[Unequal]:
    """What differs between two files (or directories of files) that are both called `name`. Raises OSError."""
    if os.path.isdir(one) and os.path.isdir(other):
        return list(_directories(name, one, other, below(one), below(other)))
    if os.path.isdir(one) != os.path.isdir(other):
        return [Unequal(name, "a directory in one run and a file in the other")]
    here, there = _json(one), _json(other)
    if here is not _NOT_JSON and there is not _NOT_JSON:
        return list(_values(name, here, there))[:_MOST]
    return _bytes(name, one, other)


def compare_own(name: str, one: str, other: str) -> list[Unequal]:
    """The same for two checkpoint directories, of what the program itself has put there.

    How often it was saved differs between the runs, so gpusched's own checkpoints (step-…) are left out.
    """
    return list(_directories(name, one, other, own(one), own(other)))


def own(folder: str) -> list[str]:
    """Files of a checkpoint directory that are not gpusched's own."""
    return [path for path in below(folder) if not path.startswith((".", "step-"))]


def below(folder: str) -> list[str]:
    """Paths of all files in a folder."""
    return [os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder) for name in names]


def _directories(name: str, one: str, other: str, here: list[str], there: list[str]) -> Iterator[Unequal]:
    for path in sorted({*here, *there}):
        inner = os.path.join(name, path)
        if path not in there or path not in here:
            yield Unequal(inner, f"is there only in the {'undisturbed' if path in here else 'preempted'} run")
        else:
            yield from compare(inner, os.path.join(one, path), os.path.join(other, path))


def _json(path: str) -> Any:
    """The content of a .json or .jsonl file; _NOT_JSON for any other, or one that is none."""
    if not path.endswith((".json", ".jsonl", ".ndjson")):
        return _NOT_JSON
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file) if path.endswith(".json") else [json.loads(line) for line in file if line.strip()]
    except (ValueError, RecursionError):
        return _NOT_JSON


def _values(place: str, one: Any, other: Any) -> Iterator[Unequal]:
    if type(one) is not type(other):
        yield Unequal(place, f"{_shown(one)} and {_shown(other)}")
    elif isinstance(one, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            inner = f"{place} [{key}]"
            if key not in one or key not in other:
                yield Unequal(inner, f"is there only in the {'undisturbed' if key in one else 'preempted'} run")
            else:
                yield from _values(inner, one[key], other[key])
    elif isinstance(one, list):
        if len(one) != len(other):
            yield Unequal(place, f"{len(one)} and {len(other)} items")
        for index, (here, there) in enumerate(zip(one, other, strict=False)):
            yield from _values(f"{place} [{index}]", here, there)
    elif repr(one) != repr(other):  # so that NaN equals itself
        yield Unequal(place, f"{_shown(one)} and {_shown(other)}")


def _bytes(name: str, one: str, other: str) -> list[Unequal]:
    sizes = os.path.getsize(one), os.path.getsize(other)
    with open(one, "rb") as first, open(other, "rb") as second:
        offset, line = 0, 1
        while True:
            here, there = first.read(_BLOCK), second.read(_BLOCK)
            if here != there:
                at = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
                at = min(len(here), len(there)) if at is None else at
                line += here[:at].count(b"\n")
                text = f"differs from byte {offset + at} (line {line}) on"
                return [Unequal(name, text + (f"; {sizes[0]} and {sizes[1]} bytes" if sizes[0] != sizes[1] else ""))]
            if not here:
                return []
            offset, line = offset + len(here), line + here.count(b"\n")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
