"""What is shown but not decided on: the last samples of every device and the progress of every job. In memory only."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpusched.model.device import Occupancy, ProbeSample
from gpusched.model.job import AttemptKey

KEEP_SAMPLES = 600
KEEP_PROGRESS = 5_000


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One moment of one device; `at` is wall clock."""

    at: float
    memory_used: int
    utilization: int | None
    power: float | None
    temperature: int | None


@dataclass(slots=True)
class Progress:
    """The last progress a job has reported, and the first of the same attempt, to tell its speed."""

    attempt: AttemptKey
    first: Mapping[str, Any]
    last: Mapping[str, Any]

    def eta(self) -> float | None:
        """Seconds until the reported total is reached at the mean speed of this attempt."""
        step, total = self.last.get("step"), self.last.get("total")
        before, then, now = self.first.get("step"), self.first.get("time"), self.last.get("time")
        if step is None or total is None or before is None or then is None or now is None:
            return None
        if step <= before or now <= then:
            return None
        left = float(max(0.0, (total - step) * (now - then) / (step - before)))
        return left if math.isfinite(left) else None  # a job can report any number


@dataclass(slots=True)
class Board:
    occupancy: tuple[Occupancy, ...] = ()
    error: str | None = None
    driver: str | None = None
    history: dict[str, deque[DeviceSample]] = field(default_factory=dict)
    progress: OrderedDict[int, Progress] = field(default_factory=OrderedDict)

    def put_sample(self, sample: ProbeSample, occupancy: tuple[Occupancy, ...], at: float) -> None:
        self.error, self.driver = sample.error, sample.driver or self.driver
        if occupancy or not sample.error:
            self.occupancy = occupancy
        if sample.error:
            return
        for reading in sample.devices:
            ring = self.history.setdefault(reading.uuid, deque(maxlen=KEEP_SAMPLES))
            ring.append(
                DeviceSample(at, reading.used_mib, reading.utilization, reading.power_w, reading.temperature_c)
            )

    def put_progress(self, attempt: AttemptKey, line: Mapping[str, Any]) -> None:
        if not line:
            return
        known = self.progress.get(attempt.job_id)
        if known is None or known.attempt != attempt:
            self.progress[attempt.job_id] = Progress(attempt, line, line)
        else:
            known.last = line
        self.progress.move_to_end(attempt.job_id)
        while len(self.progress) > KEEP_PROGRESS:
            self.progress.popitem(last=False)
