"""Everything that is periodic or timed in wall time, on APScheduler. Its callbacks only post events or start a sweep.

Late work is never dropped (`misfire_grace_time=None`) and never doubled (`coalesce`, one instance). The truth about
begin times and --cron jobs is in the database; the triggers here are armed from it after every step.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim, CronSimError

from gpusched.model.changes import Step
from gpusched.model.errors import UsageError
from gpusched.model.events import CronFired, Woke
from gpusched.model.job import Job
from gpusched.model.state import JobState


def next_run(cron: str, after: float) -> float:
    """The next time a cron expression fires, in local time as cron does. Raises UsageError for a bad expression."""
    local = datetime.fromtimestamp(after).astimezone()
    try:
        return float(next(CronSim(cron, local)).timestamp())
    except CronSimError as error:
        raise UsageError(
            f"--cron {cron!r}: {error}", "five fields: minute hour day month weekday, for example '0 9 * * mon'"
        ) from None
    except StopIteration:
        raise UsageError(f"--cron {cron!r} never fires", "check the day and the month") from None


class Timers:
    def __init__(self, post: Callable[[Woke | CronFired], None], now: Callable[[], float]) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns about every tick that is skipped
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        self._post = post
        self._now = now
        self._begin: float | None = None

    def start(self) -> None:
        self._scheduler.start()

    def every(self, seconds: float, what: Callable[[], Awaitable[object]], name: str) -> None:
        """Run a coroutine each so many seconds; a run that is not over yet is not doubled."""
        self._scheduler.add_job(what, IntervalTrigger(seconds=seconds), id=name, replace_existing=True)

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
        self._post(CronFired(job.id, job.spec.begin, next_run(job.spec.cron, self._now())))

    def stop(self) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


def _on_loop(what: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """AsyncIOScheduler runs plain functions in a thread; a coroutine runs on the loop."""

    async def run() -> None:
        what()

    return run
