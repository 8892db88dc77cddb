"""Time as the engine sees it: passed in, never asked for."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.model.evolve import swift


@swift
@dataclass(frozen=True, slots=True, order=True)
class Instant:
    """One moment on two clocks.

    wall: seconds since the epoch; what people see, begin times and cron.
    boot: seconds since boot, suspend included (CLOCK_BOOTTIME); every interval and deadline, so that a wall
    clock that jumps harms nothing.
    """

    wall: float
    boot: float

    def later(self, seconds: float) -> Instant:
        return Instant(self.wall + seconds, self.boot + seconds)
