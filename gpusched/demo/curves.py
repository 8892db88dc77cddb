"""Loss curves in the terminal: points from the jobs' progress files, drawn with braille dots (2 × 4 per character)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpusched.rundir import PROGRESS, tail_lines

Point = tuple[float, float]  # (wall clock, loss)
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BLANK = chr(0x2800)
EDGE = "┊"  # where a pause begins and ends
_PAUSE_WORDS = ("preempted by urgent", "preempted", "paused")


@dataclass(frozen=True, slots=True)
class Pause:
    """The time in which a job had no device; `end` is None while it lasts."""

    begin: float
    end: float | None


def points_of(job_root: Path) -> list[Point]:
    """The losses that a job has reported in all its attempts, in the order of time."""
    points = []
    for path in sorted(job_root.glob(f"*/{PROGRESS}")):
        for line in tail_lines(str(path), 1 << 20):
            try:
                entry = json.loads(line)
                points.append((float(entry["time"]), float(entry["metrics"]["loss"])))
            except (ValueError, KeyError, TypeError):
                continue  # a line of somebody else's making
    return sorted(points)


def draw(
    points: Sequence[Point], pauses: Sequence[Pause], *, width: int, height: int, begin: float, end: float, top: float
) -> list[str]:
    """`height` lines of `width` characters; x is wall clock from `begin` to `end`, y the loss from 0 to `top`."""
    cells = [[0] * width for _ in range(height)]
    for at, loss in points:
        x = int((at - begin) / max(end - begin, 1e-9) * (width * 2 - 1))
        y = int((1.0 - min(loss, top) / max(top, 1e-9)) * (height * 4 - 1))
        if 0 <= x < width * 2 and 0 <= y < height * 4:
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    rows = [[chr(ord(BLANK) + cell) for cell in row] for row in cells]
    for pause in pauses:
        first, last = (
            min(width - 1, max(0, int((at - begin) / max(end - begin, 1e-9) * (width - 1))))
            for at in (pause.begin, end if pause.end is None else pause.end)
        )
        _mark(rows, first, last, open_end=pause.end is None)
    return ["".join(row) for row in rows]


def _mark(rows: list[list[str]], first: int, last: int, *, open_end: bool) -> None:
    """Draw the edges of a pause where no dot is in their way, and between them the longest word that fits."""
    for row in rows:
        for column in (first, last)[: 1 if open_end else 2]:
            if row[column] == BLANK:
                row[column] = EDGE
    room = last - first - 1
    word = next((word for word in _PAUSE_WORDS if len(word) <= room), "")
    start = first + 1 + (room - len(word)) // 2
    rows[0][start : start + len(word)] = list(word)
