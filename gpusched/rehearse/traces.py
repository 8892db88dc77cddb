"""Reading the traces that gpusched.checkpoint wrote (see gpusched/checkpoint/trace.py), and matching their safe points.

A safe point is known by where it is (run, phase, epoch, batches handed out, step, kind, and which of several such), not
by its number, which starts anew in every process.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One safe point of one process."""

    number: int  # in its process, from 1
    kind: str
    key: Key
    epoch: int
    batch: int
    step: int
    call: int | None
    rank: int
    at: tuple[tuple[str, int, str], ...]  # (file, line, function), innermost first
    line: dict[str, Any]

    def where(self) -> str:
        """For people; the batch is the number of those that are done."""
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"

    def what(self) -> str:
        """The same, with what kind of safe point it is."""
        kinds = {"step": "", "micro_step": "a micro batch after ", "check": "a check after ", "epoch": "the end after "}
        return kinds.get(self.kind, self.kind + " after ") + self.where()


@dataclass(slots=True)
class Trace:
    """The trace of one process: all of its ranks."""

    points: list[Point] = field(default_factory=list)
    headers: list[dict[str, Any]] = field(default_factory=list)
    exists: bool = False

    @property
    def main(self) -> list[Point]:
        """The safe points of rank 0."""
        return [point for point in self.points if point.rank == 0]

    def by_key(self) -> dict[Key, Point]:
        return {(point.rank, *point.key): point for point in self.points}


def read(path: str) -> Trace:
    """The trace that begins with this path, with those of the other ranks; torn last lines are left out."""
    trace = Trace(exists=os.path.exists(path))
    folder, name = os.path.split(path)
    others = sorted(other for other in os.listdir(folder) if other.startswith(name + ".rank"))
    for rank_file in [name, *others]:
        _read_one(os.path.join(folder, rank_file), trace)
    return trace


def _read_one(path: str, trace: Trace) -> None:
    if not os.path.exists(path):
        return
    seen: Counter[Key] = Counter()
    at: tuple[tuple[str, int, str], ...] = ()
    rank = 0
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if "trace" in line:
                trace.headers.append(line)
                rank = int(line.get("rank", 0))
                continue
            if "at" in line:
                at = tuple((str(file_), int(number), str(function)) for file_, number, function in line.pop("at"))
            base = (line["run"], line["phase"], line["epoch"], tuple(line["calls"]), line["step"], line["kind"])
            trace.points.append(
                Point(line["n"], line["kind"], (*base, seen[base]), line["epoch"], line["batch"], line["step"],
                      line["call"], rank, at, line)
            )  # fmt: skip
            seen[base] += 1


def index(points: Sequence[Point], point: Point) -> int | None:
    """Which of these is the same safe point; None if none is."""
    return {one.key: number for number, one in enumerate(points)}.get(point.key)


def after_resume(points: Sequence[Point], stopped: Point) -> int:
    """The index in the undisturbed run's points of the first one that a process reaches after a stop at this one.

    A stop in an evaluation that is no loop of run.batches() starts that evaluation again.
    """
    place = index(points, stopped)
    if place is None:
        return len(points)
    if stopped.kind != "check" or stopped.call is not None:
        return place + 1
    while place > 0 and _same_evaluation(points[place - 1], stopped):
        place -= 1
    return place


def _same_evaluation(one: Point, other: Point) -> bool:
    return one.kind == "check" and one.call is None and one.key[:5] == other.key[:5]
