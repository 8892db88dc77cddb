"""How quick an elastic job would be on another number of devices, from what it was measured at.

The model is Amdahl's law (1967): one step takes s + p/n seconds on n devices. Through two measured points it is exact;
between measured points and past them the nearest two decide, so every measurement is met exactly and past the last one
the estimate bends down, never up. With one point, or none, we assume that each doubling of the devices brings 80 %
efficiency once (a quarter of the step does not get shorter): that is what data-parallel jobs on one server show at
small numbers, and an estimate that is too low is put right by a measurement, while one that is too high moves a job for
nothing. (Optimus, EuroSys'18, and Pollux, OSDI'21, fit such curves too, with terms for parameter servers and
statistical efficiency that a job here does not tell.)

It must not know jobs, devices or policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpusched.model.job import Speed

SERIAL = 0.25  # of a step at one measured number: a doubling then gives 1 / (0.25 + 0.75 / 2) = 1.6 times the speed


def step_seconds(speeds: Sequence[Speed], gpus: int) -> float:
    """Seconds that one step takes on `gpus` devices; without any measurement in units of a step on one device.

    speeds: what was measured, ascending by devices, all rates above 0.
    """
    if not speeds:
        return _assumed(1, 1.0, gpus)
    points = [(speed.gpus, 1.0 / speed.rate) for speed in speeds]
    for n, seconds in points:
        if n == gpus:
            return seconds
    if len(points) == 1:
        return _assumed(*points[0], gpus)
    above = next((place for place, (n, _) in enumerate(points) if n > gpus), len(points))
    low, high = points[max(0, min(above - 1, len(points) - 2))], points[max(1, min(above, len(points) - 1))]
    near = low if gpus < low[0] else high if gpus > high[0] else None
    return _through(low, high, near, gpus)


def speedup(speeds: Sequence[Speed], now: int, then: int) -> float:
    """How many times as quick the job is on `then` devices as on `now`."""
    return step_seconds(speeds, now) / step_seconds(speeds, then)


def measured(speeds: Sequence[Speed], gpus: int) -> bool:
    return any(speed.gpus == gpus for speed in speeds)


def with_speed(speeds: Sequence[Speed], new: Speed) -> tuple[Speed, ...]:
    """The measurements with a new one, which takes the place of an older one on as many devices."""
    return tuple(sorted((*_others(speeds, new.gpus), new), key=lambda speed: speed.gpus))


def _others(speeds: Sequence[Speed], gpus: int) -> Iterable[Speed]:
    return (speed for speed in speeds if speed.gpus != gpus)


def _assumed(known: int, seconds: float, gpus: int) -> float:
    return seconds * (SERIAL + (1 - SERIAL) * known / gpus)


def _through(low: tuple[int, float], high: tuple[int, float], near: tuple[int, float] | None, gpus: int) -> float:
    """Seconds per step by the line s + p/n through two points; `near`: the closest of them, if `gpus` is outside."""
    (n1, t1), (n2, t2) = low, high
    parallel = (t1 - t2) / (1 / n1 - 1 / n2)
    serial = t1 - parallel / n1
    if near is None:
        return serial + parallel / gpus
    n, seconds = near
    if parallel <= 0:  # more devices were no faster: still more are not either, and fewer may be as usual
        return seconds if gpus > n else _assumed(n, seconds, gpus)
    if serial < 0:  # more than twice as quick on twice as many: a measurement's noise, or memory that now suffices
        return seconds * n / gpus
    return serial + parallel / gpus
