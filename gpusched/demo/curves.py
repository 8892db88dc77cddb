"""Loss curves in the terminal: points from the jobs' progress files, drawn with braille dots (2 × 4 per character)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gpusched.rundir import PROGRESS, tail_lines

Point = tuple[float, float]  # (wall clock, loss)
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


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


def draw(points: Sequence[Point], *, width: int, height: int, begin: float, end: float, top: float) -> list[str]:
    """`height` lines of `width` characters; x is wall clock from `begin` to `end`, y the loss from 0 to `top`."""
    cells = [[0] * width for _ in range(height)]
    for at, loss in points:
        x = int((at - begin) / max(end - begin, 1e-9) * (width * 2 - 1))
        y = int((1.0 - min(loss, top) / max(top, 1e-9)) * (height * 4 - 1))
        if 0 <= x < width * 2 and 0 <= y < height * 4:
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
