"""What there is to see at one moment, the devices, the queue and the curves, and at the end the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpusched.demo.curves import Pause, Point


@dataclass(slots=True)
class Curve:
    title: str
    points: list[Point]
    pauses: list[Pause] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    title: str
    now: float  # wall clock
    devices: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out: one line for each job, and whether both trainings ended with the same bits."""

    same: bool
    text: str
    lines: list[tuple[str, str]]  # job, what became of it
