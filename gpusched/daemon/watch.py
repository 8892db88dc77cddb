"""Watching attempts: what their control directories show becomes events; an exit comes with a look at its devices.

The doorbell says "look at attempt X"; what is there is read from files, so that a lost ring loses nothing: the end of
an attempt is seen by the end of its supervisor, and a restart of the daemon reads everything anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

from gpusched.daemon.board import Board
from gpusched.engine.devices import left
from gpusched.failpoints import failpoint
from gpusched.model.device import Occupancy, ProbeSample
from gpusched.model.events import (
    AttemptExited,
    AttemptProgressed,
    AttemptSaved,
    AttemptStarted,
    AttemptWatching,
    Event,
)
from gpusched.model.job import Attempt, AttemptKey
from gpusched.model.state import Outcome, OutcomeKind
from gpusched.ports import DeviceProbe, Launcher, Observation

log = logging.getLogger(__name__)
AGAIN, LONGEST_AGAIN = 1.0, 60.0  # seconds until what could not be looked at is looked at again, doubled each time
PROGRESS_EVERY = 60.0  # seconds between two posts of an attempt's progress
READ_DEADLINE = 1.0  # seconds for the direct reading at an exit; past it, the next samples decide

# tells our attempts' processes from everybody else's: (sample, supervisor pid → attempt, mark → attempt)
Attribute = Callable[
    [ProbeSample, Mapping[int, AttemptKey], Mapping[str, AttemptKey]], tuple[Occupancy, ...]
]


class Watcher:
    """Follows every attempt from its start to its end and posts what it sees."""

    def __init__(
        self,
        launcher: Launcher,
        probe: DeviceProbe,
        attribute: Attribute,
        board: Board,
        post: Callable[[Event], None],
        post_soon: Callable[[Event], None],
    ) -> None:
        self.launcher = launcher
        self.board = board
        self._probe = probe
        self._attribute = attribute
        self._post = post
        self._post_soon = post_soon
        self._following: dict[AttemptKey, asyncio.Task[None]] = {}
        self._supervisors: dict[int, AttemptKey] = {}
        self._marks: dict[str, AttemptKey] = {}
        self._told: dict[AttemptKey, tuple[object, ...]] = {}
        self._progress_due: dict[AttemptKey, float] = {}  # monotonic clock
        self._endings: dict[AttemptKey, asyncio.Future[Observation]] = {}

    def attribute(self, sample: ProbeSample) -> tuple[Occupancy, ...]:
        return self._attribute(sample, self._supervisors, self._marks)

    def know(self, key: AttemptKey) -> None:
        """Learn which processes are the attempt's, so that no sample takes them for strangers. Posts nothing."""
        try:
            self._note(key, self.launcher.observe(key))
        except OSError as error:
            log.warning("attempt %s cannot be looked at: %s", key, error)

    def look(self, key: AttemptKey) -> Observation:
        """Read the attempt's files and post what is new."""
        seen = self.launcher.observe(key)
        self._note(key, seen)
        facts = (seen.pid, seen.watching, seen.saved)
        if seen.pid is not None and self._told.get(key) != facts:
            self._told[key] = facts
            failpoint("start-seen")
            for event in started_facts(key, seen):
                self._post_soon(event)
        self._tell_progress(key, seen)
        return seen

    def _tell_progress(self, key: AttemptKey, seen: Observation) -> None:
        """Post how far the job is, once in a while: the speed of elastic jobs is measured by it."""
        event = progress_fact(key, seen)
        now = time.monotonic()
        if event is not None and seen.pid is not None and now >= self._progress_due.get(key, 0.0):
            self._progress_due[key] = now + PROGRESS_EVERY
            self._post_soon(event)

    def rung(self, key: AttemptKey) -> None:
        """The doorbell: look, and if that shows the end, let whoever waits for it know."""
        seen = self.look(key)
        ending = self._endings.get(key)
        if seen.outcome is not None and ending is not None and not ending.done():
            ending.set_result(seen)

    def follow(self, attempt: Attempt) -> None:
        """Wait in the background for the end of a live attempt and report it."""
        if attempt.key not in self._following:
            task = asyncio.get_running_loop().create_task(self._follow(attempt))
            self._following[attempt.key] = task

    async def _follow(self, attempt: Attempt) -> None:
        pause = AGAIN
        try:
            while True:
                try:
                    self._post(await self._followed(attempt))
                    return
                except Exception:  # no descriptor was free, say: what cannot be looked at is not gone
                    log.exception("watching attempt %s failed; it is looked at again in %g s", attempt.key, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_AGAIN)
        finally:
            self._following.pop(attempt.key, None)

    async def _followed(self, attempt: Attempt) -> AttemptExited:
        key = attempt.key
        self.look(key)
        while True:
            seen = await self._ending(key)
            # Its supervisor ended without a claim: nothing has run, and after this nothing will.
            if seen.claimed or seen.revoked or self.launcher.revoke(key):
                break
        failpoint("end-seen")
        return await self.report_end(attempt, seen)

    async def _ending(self, key: AttemptKey) -> Observation:
        """What the files show at the end of the attempt.

        The bell is quicker, because a supervisor rings when everything of the attempt is reaped and exit.json is
        there; its own end, which follows, tells the same without a bell, or that it was killed.
        """
        rung: asyncio.Future[Observation] = asyncio.get_running_loop().create_future()
        self._endings[key] = rung
        gone = asyncio.ensure_future(self.launcher.ended(key))
        try:
            await asyncio.wait((rung, gone), return_when=asyncio.FIRST_COMPLETED)
            if rung.done():
                return rung.result()
            await gone
            return self.look(key)
        finally:
            gone.cancel()
            del self._endings[key]

    async def report_end(self, attempt: Attempt, seen: Observation) -> AttemptExited:
        """The end of an attempt whose supervisor is gone, with what one direct reading says about its devices."""
        outcome = seen.outcome
        if not seen.claimed:
            return AttemptExited(attempt.key, Outcome(OutcomeKind.NEVER_STARTED, text="its supervisor could not begin"))
        if outcome is None:
            killed = await asyncio.to_thread(self.launcher.kill_remains, attempt.key)  # may take seconds
            text = "its supervisor was killed, so nobody saw how it ended"
            if killed:
                text += f"; {killed} process{'es' if killed > 1 else ''} that it left behind were killed"
            outcome = Outcome(OutcomeKind.LOST, text=text, saved=seen.saved)
        clear = await self._clear(attempt)
        return AttemptExited(attempt.key, outcome, clear)

    async def _clear(self, attempt: Attempt) -> tuple[str, ...]:
        """Which of its devices a direct reading shows free of the attempt."""
        if not attempt.devices:
            return ()
        try:
            reading = asyncio.ensure_future(self._probe.read(attempt.uuids))
            sample = await asyncio.wait_for(asyncio.shield(reading), READ_DEADLINE)  # a late answer harms nobody
        except TimeoutError:
            return ()
        if sample.error is not None:
            return ()
        return tuple(o.reading.uuid for o in self.attribute(sample) if left(attempt, o))

    def forget(self, key: AttemptKey) -> None:
        """The attempt is over and its devices are free: let go of what is known about it."""
        failpoint("before-forget")
        self._told.pop(key, None)
        self._progress_due.pop(key, None)
        self._supervisors = {pid: k for pid, k in self._supervisors.items() if k != key}
        self._marks = {mark: k for mark, k in self._marks.items() if k != key}
        self.launcher.forget(key)

    def _note(self, key: AttemptKey, seen: Observation) -> None:
        if seen.supervisor_pid is not None:
            self._supervisors[seen.supervisor_pid] = key
        if seen.mark is not None:
            self._marks[seen.mark] = key
        self.board.put_progress(key, seen.progress)

    async def close(self) -> None:
        for task in list(self._following.values()):
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)


def started_facts(key: AttemptKey, seen: Observation) -> list[Event]:
    """What an observation says about a started attempt, as events."""
    events: list[Event] = []
    if seen.pid is not None:
        events.append(AttemptStarted(key, seen.pid))
    if seen.watching:
        events.append(AttemptWatching(key))
    if seen.saved is not None:
        events.append(AttemptSaved(key, seen.saved))
    return events


def progress_fact(key: AttemptKey, seen: Observation) -> AttemptProgressed | None:
    """The job's last progress line as an event; None if it tells no step or no time. A job can report any number."""
    step, at, total = (_finite(seen.progress.get(name)) for name in ("step", "time", "total"))
    return None if step is None or at is None else AttemptProgressed(key, step, at, total)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
