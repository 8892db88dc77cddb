"""What there is to see at one moment: the devices, the queue and the curves, as the daemon tells them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpusched.demo.curves import Point


@dataclass(slots=True)
class Curve:
    title: str
    points: list[Point]


@dataclass(slots=True)
class Scene:
    title: str
    began: float  # wall clock
    now: float
    devices: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
