"""How many GPUs, as people type it: `2`; for an elastic job a range (`2-8`) or just these numbers (`1,2,4`, `2-8:2`).

The grammar is that of Slurm's `--nodes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gpusched.model.array import expand
from gpusched.model.errors import UsageError

_PART = r"\d+(?:-\d+(?::\d+)?)?"
COUNT = re.compile(f"{_PART}(?:,{_PART})*", re.ASCII)
MOST = 4096  # GPUs of one job
_HINT = "write for example 2, h100:2 (two of type h100), 2-8 (any number from 2 to 8), 1,2,4,8 (one of these), or 0"


class GpuCount(NamedTuple):
    """least: what a job needs to run at all. most: what it can use, if that is more. only: the numbers from `least`
    to `most` that it can run on; empty: all of them."""

    least: int
    most: int | None = None
    only: tuple[int, ...] = ()

    def __str__(self) -> str:
        return counts_text(self.least, self.most, self.only)


def counts_text(least: int, most: int | None, only: tuple[int, ...] = ()) -> str:
    """`2`, `2-8` or `1,2,4,8`."""
    if most is None:
        return str(least)
    return ",".join(map(str, only)) if only else f"{least}-{most}"


def make_count(numbers: Iterable[int]) -> GpuCount:
    """From the numbers of GPUs that a job can run on, in any order. Raises UsageError for 0 among others."""
    counts = tuple(sorted(set(numbers)))
    least, most = counts[0], counts[-1]
    if least == most:
        return GpuCount(least)
    if least == 0:
        raise UsageError(
            "a job runs either with GPUs or without: 0 cannot be one of several numbers of GPUs",
            f"write --gpus {counts_text(1, most if most > 1 else None)}, or --gpus 0 for a job that needs none",
        )
    return GpuCount(least, most, () if len(counts) == most - least + 1 else counts)


def elastic_count(least: int, most: int | None, only: Sequence[int]) -> GpuCount:
    """From the fields of a submit. Raises UsageError for what contradicts itself."""
    if not most:
        if only:
            raise UsageError("the numbers of GPUs it can run on mean nothing without a most", "give gpus_max too")
        return GpuCount(least)
    if most < least:
        raise UsageError(f"at least {least} and at most {most} GPUs make no sense", f"did you mean {most}-{least}?")
    if only and (min(only) != least or max(only) != most):
        raise UsageError(
            f"the numbers of GPUs it can run on go from {min(only)} to {max(only)}, and it asks for {least} to {most}",
            "give the first of them as gpus, the last as gpus_max",
        )
    return make_count(tuple(only) or range(least, most + 1))


def parse_count(text: str) -> GpuCount:
    """Read the text of --gpus. Raises UsageError for backward and open ranges, 0 in a range, and nonsense."""
    text = text.strip()
    if not text or not all(char.isascii() and (char.isdigit() or char in "-,:") for char in text):
        raise UsageError(f"{text!r} is no number of GPUs", _HINT)
    if text.isdigit() and len(text) <= 6:
        return GpuCount(int(text))
    if any(len(number) > 6 for number in text.replace("-", ",").replace(":", ",").split(",")):
        raise UsageError(f"{text!r} is no number of GPUs", _HINT)
    for part in text.split(","):
        least, dash, most = part.partition("-")
        if dash and not (least and most):
            raise UsageError(f"{text!r} is no number of GPUs: the range {part!r} has no {_missing(least)}", _HINT)
        last = most.partition(":")[0]
        if last.isdigit() and int(last) > MOST:
            raise UsageError(f"{last} GPUs are more than one job can have", f"ask for at most {MOST}")
    try:
        return make_count(expand(text, "--gpus", _HINT))
    except UsageError as error:
        raise UsageError(f"{text!r} is no number of GPUs: {error.message}", error.hint) from None


def _missing(least: str) -> str:
    return "end" if least else "beginning"
