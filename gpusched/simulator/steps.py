"""A quantity that changes at moments, such as devices in use: its level and its average over any time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise


class Steps:
    """Made of changes (time, by how much), in any order. Before the first one it is 0. Times in seconds."""

    def __init__(self, changes: Iterable[tuple[float, float]]) -> None:
        summed: dict[float, float] = {}
        for time, change in changes:
            summed[time] = summed.get(time, 0.0) + change
        self.times = sorted(summed)
        self.levels: list[float] = []  # from the same place's time on
        self._areas: list[float] = []  # level × seconds, up to the same place's time
        level, area, last = 0.0, 0.0, self.times[0] if self.times else 0.0
        for time in self.times:
            area += level * (time - last)
            level += summed[time]
            last = time
            self.levels.append(level)
            self._areas.append(area)

    def mean(self, start: float, end: float) -> float:
        """The average level between two times; 0 of no time at all."""
        return (self._until(end) - self._until(start)) / (end - start) if end > start else 0.0

    def means(self, start: float, end: float, parts: int) -> list[float]:
        """The average level in each of so many equal parts."""
        edges = [start + (end - start) * part / parts for part in range(parts + 1)]
        return [self.mean(first, last) for first, last in pairwise(edges)]

    def _until(self, time: float) -> float:
        place = bisect_right(self.times, time) - 1
        return self._areas[place] + self.levels[place] * (time - self.times[place]) if place >= 0 else 0.0
