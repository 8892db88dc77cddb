"""Estimated starts for those who ask: rolled in one worker thread, kept for a while, never on the event loop.

The loop only takes a picture of the engine (microseconds). The thread lets go of the interpreter every few
milliseconds, and a roll ends when its time is over: whoever it has not reached has no estimate.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gpusched.daemon.loop import Loop
from gpusched.engine.picture import Picture, take
from gpusched.model.changes import Step
from gpusched.model.events import JobSubmitted
from gpusched.simulator.forecast import Enough, Estimate, Forecast, forecast
from gpusched.simulator.guesses import Guess

log = logging.getLogger(__name__)
QUEUE_BUDGET = 0.5  # seconds that each of the three rolls for the whole queue may take
ONE_BUDGET = 1.0  # likewise for a single job
QUEUE_PATIENCE = 0.15  # seconds that the answer to `queue` may wait for estimates that are not there yet …
FEW = 50  # … if no more jobs than this wait: else it shows those of before, or none, at once
AFTERWARDS = 1.0  # seconds, in that case: the long answer is written before the roll begins
BREATH = 0.002  # seconds of work after which the thread lets go of the interpreter by itself …
SWITCH = 0.0005  # … and after which it has to, if somebody else wants it
KEPT = 2.0  # seconds that estimates stay good although something has changed, or …
COSTS = 5.0  # … so many times as long as they took
RECENT = 10.0  # seconds that estimates of the queue do for `why`, if nothing has changed
STALE = 60.0  # seconds after which even unchanged ones are made anew: run times go past what was expected


@dataclass(slots=True)
class Made:
    """A forecast of the whole queue, and when and how it came about."""

    forecast: Forecast
    version: int  # of the engine's state
    at: float  # time.monotonic()
    took: float


class Outlook:
    """At most one roll at a time; the rest wait their turn."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._version = 0
        self._made: Made | None = None
        self._making: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpusched-outlook")
        self._closing = False

    def on_step(self, step: Step) -> None:
        self._version += bool(step.changes)

    async def queue(self) -> Mapping[int, Estimate]:
        """Estimates of the waiting jobs, as far as they are known now. Never waits for long."""
        if self._loop.engine.view.closing or self._closing:
            return {}
        if not self._fresh():
            few = self._few()
            if self._making is None:
                self._making = asyncio.get_running_loop().create_task(self._make(0.0 if few else AFTERWARDS))
            if few:
                await asyncio.wait({self._making}, timeout=QUEUE_PATIENCE)
        made = self._made
        return made.forecast.estimates if made is not None and time.monotonic() - made.at < 2 * STALE else {}

    async def job(self, job_id: int) -> Estimate | None:
        """The estimate of one waiting job. None: there is none to be had now."""
        made = self._made
        if made is not None and made.version == self._version and time.monotonic() - made.at < RECENT:
            found = made.forecast.estimates.get(job_id)
            if found is not None and (found.latest is not None or made.forecast.complete):
                return found
        rolled = await self._roll(lambda picture: forecast(picture, [job_id], enough=self._within(ONE_BUDGET)))
        return rolled.estimates.get(job_id) if rolled is not None else None

    async def submit(self, event: JobSubmitted) -> Estimate | None:
        """When a job that is not submitted yet would start (of an array: its first element)."""
        rolled = await self._roll(lambda picture: forecast(picture, submit=event, enough=self._within(ONE_BUDGET)))
        return rolled.estimates[rolled.submitted[0]] if rolled is not None and rolled.submitted else None

    def close(self) -> None:
        """End what is under way."""
        self._closing = True
        if self._making is not None:
            self._making.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # ---- inside ---------------------------------------------------------------------------------------------

    def _fresh(self) -> bool:
        made = self._made
        if made is None:
            return False
        age = time.monotonic() - made.at
        return age < (STALE if made.version == self._version else max(KEPT, COSTS * made.took))

    def _few(self) -> bool:
        return sum(len(waiting.entries) for waiting in self._loop.engine.view.buckets.values()) <= FEW

    async def _make(self, after: float) -> None:
        try:
            await asyncio.sleep(after)
            version, begin = self._version, time.monotonic()
            rolled = await self._roll(lambda picture: forecast(picture, enough=self._within(QUEUE_BUDGET)))
            if rolled is not None:
                end = time.monotonic()
                self._made = Made(rolled, version, end, end - begin)
        finally:
            self._making = None

    async def _roll(self, roll: Callable[[Picture], Forecast]) -> Forecast | None:
        """Run a forecast in the thread. None if it failed, or while the daemon ends."""
        if self._closing or self._loop.engine.view.closing:
            return None
        picture = take(self._loop.engine, self._loop.clock.now())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _considerately, roll, picture)
        except Exception:  # nothing depends on an estimate
            log.exception("no estimates: the roll into the future failed")
            return None

    def _within(self, seconds: float) -> Callable[[Guess], Enough]:
        """What ends each roll, and lets others have the interpreter on the way."""

        def begin(_guess: Guess) -> Enough:
            end = time.monotonic() + seconds
            breath = time.monotonic()

            def enough() -> bool:
                nonlocal breath
                now = time.monotonic()
                if now - breath > BREATH:
                    time.sleep(0.0001)
                    breath = time.monotonic()
                return now > end or self._closing

            return enough

        return begin


def _considerately(roll: Callable[[Picture], Forecast], picture: Picture) -> Forecast:
    """Roll so that the loop hardly notices: it gets the interpreter as soon as it wants it, and no collector looks
    through a second engine, whose records hold no cycles."""
    interval, collects = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(SWITCH)
    gc.disable()
    try:
        return roll(picture)
    finally:
        sys.setswitchinterval(interval)
        if collects:
            gc.enable()
