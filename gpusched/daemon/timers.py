"""Everything that is periodic or timed in wall time, on APScheduler. Its callbacks only post events or start a sweep.

Late work is never dropped (`misfire_grace_time=None`) and never doubled (`coalesce`, one instance). The truth about
begin times and --cron jobs is in the database; the triggers here are armed from it after every step.

What is periodic goes by the loop's own clock, because a wall clock that is set back by an hour would stop it for an
hour; and the triggers are looked at again every few seconds, because one that is set forward (or a machine that was
suspended) would make them late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, tzinfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from cronsim import CronSim, CronSimError
from tzlocal import get_localzone

from gpusched.model.changes import Step
from gpusched.model.errors import UsageError
from gpusched.model.events import CronFired, Woke
from gpusched.model.job import Job
from gpusched.model.state import JobState

log = logging.getLogger(__name__)
LOOK = 10.0  # seconds between looks at the wall clock


def next_run(cron: str, after: float) -> float:
    """The next time a cron expression fires, in local time as cron does. Raises UsageError for a bad expression."""
    try:
        return float(next(CronSim(cron, datetime.fromtimestamp(after, _local_zone()))).timestamp())
    except CronSimError as error:
        raise UsageError(
            f"--cron {cron!r}: {error}", "five fields: minute hour day month weekday, for example '0 9 * * mon'"
        ) from None
    except StopIteration:
        raise UsageError(f"--cron {cron!r} never fires", "check the day and the month") from None


def _local_zone() -> tzinfo | None:
    """The zone with its rules, not only today's distance from UTC: a run after the clocks change keeps its hour."""
    try:
        return get_localzone()
    except (LookupError, ValueError, OSError):  # a TZ that no database knows
        return datetime.now().astimezone().tzinfo


class Timers:
    def __init__(self, post: Callable[[Woke | CronFired], None], now: Callable[[], float]) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns about every tick that is skipped
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        self._post = post
        self._now = now
        self._begin: float | None = None
        self._periodic: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._scheduler.start()
        self.every(LOOK, self._look_at_the_clock, "clock")

    def every(self, seconds: float, what: Callable[[], Awaitable[object]], name: str) -> None:
        """Run a coroutine each so many seconds; a run that is not over yet is not doubled."""
        self._periodic.append(asyncio.get_running_loop().create_task(_repeat(seconds, what), name=name))

    async def _look_at_the_clock(self) -> None:
        self._scheduler.wakeup()

    def on_step(self, step: Step) -> None:
        """Arm what the step has set: the earliest begin time, and the --cron jobs that changed."""
        if step.wake_wall != self._begin:
            self._begin = step.wake_wall
            if step.wake_wall is not None:
                self._at(step.wake_wall, "begin", self._woke)
        for job in step.changes.jobs:
            if job.spec.cron is not None:
                self.arm_cron(job)

    def arm_cron(self, job: Job) -> None:
        """Fire at the job's next run, or no more if it has ended."""
        name = f"cron-{job.id}"
        if job.state is not JobState.PENDING or job.spec.begin is None:
            if self._scheduler.get_job(name) is not None:
                self._scheduler.remove_job(name)
            return
        self._at(job.spec.begin, name, lambda: self._cron(job))

    def _at(self, wall: float, name: str, what: Callable[[], None]) -> None:
        moment = max(datetime.fromtimestamp(wall, UTC), datetime.now(UTC)) + timedelta(milliseconds=1)
        self._scheduler.add_job(_on_loop(what), DateTrigger(moment), id=name, replace_existing=True)

    def _woke(self) -> None:
        self._begin = None
        self._post(Woke())

    def _cron(self, job: Job) -> None:
        assert job.spec.cron is not None and job.spec.begin is not None
        after = max(self._now(), job.spec.begin)  # a clock that was just set back does not make it due again
        self._post(CronFired(job.id, job.spec.begin, next_run(job.spec.cron, after)))

    def stop(self) -> None:
        for task in self._periodic:
            task.cancel()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


async def _repeat(seconds: float, what: Callable[[], Awaitable[object]]) -> None:
    clock = asyncio.get_running_loop().time
    due = clock() + seconds
    while True:
        await asyncio.sleep(due - clock())
        try:
            await what()
        except Exception:
            log.exception("what is done every %g s has failed; it is done again", seconds)
        due = max(due + seconds, clock())  # after a long run at once, but once


def _on_loop(what: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """AsyncIOScheduler runs plain functions in a thread; a coroutine runs on the loop."""

    async def run() -> None:
        what()

    return run
