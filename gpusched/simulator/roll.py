"""One roll of an engine into the future: attempts only take time, nobody submits or cancels anything.

A shell around the engine, as world.py is. It begins with the state of a running engine (engine/picture.py); what was
live there goes on, what is started lives as long as the guess says. Every job ends well, and every job that starts can
be asked to save and leave. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from gpusched.engine.engine import Engine
from gpusched.engine.picture import Picture, revive
from gpusched.model.actions import Ask, Asked, Launch
from gpusched.model.changes import Reply, Step
from gpusched.model.clock import Instant
from gpusched.model.events import AttemptExited, AttemptStarted, Event, Woke
from gpusched.model.job import Attempt, AttemptKey, Job
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved, StopKind
from gpusched.policy.costs import cost
from gpusched.policy.expected import running_for
from gpusched.policy.speedup import speedup
from gpusched.simulator.guesses import Guess, seconds_left

_SAME = 1e-6  # seconds: what is closer together happens at once
_NEVER = float("inf")
_STUCK = 3  # kills after which nobody should wait for an attempt to leave
_DONE = Outcome(OutcomeKind.EXITED, code=0)
_SAVED = Outcome(OutcomeKind.EXITED, code=85, saved=Saved("to be"))


@dataclass(slots=True)
class Work:
    """What is left of a job: seconds on so many devices. None: nobody knows."""

    left: float | None
    devices: int


@dataclass(slots=True)
class Roll:
    """starts: wall clock, of the first launch of every job that was not alive in the picture."""

    picture: Picture
    guess: Guess
    engine: Engine = field(init=False)
    starts: dict[int, float] = field(default_factory=dict)
    steps: int = 0
    now: Instant = field(init=False)
    complete: bool = False  # nothing more would happen, or everybody who was asked for has started
    _works: dict[int, Work] = field(default_factory=dict)
    _since: dict[AttemptKey, float] = field(default_factory=dict)  # boot clock
    _ends: list[tuple[float, int, AttemptKey, bool]] = field(default_factory=list)  # …, it leaves unfinished

    def __post_init__(self) -> None:
        self.engine = revive(self.picture)
        self.now = self.picture.now

    def run(
        self, first: Sequence[Event], asked: Collection[int] | None, enough: Callable[[Roll], bool]
    ) -> tuple[Reply, ...]:
        """Go on until all who are asked for have started, nothing more happens, or it is enough.

        first: what happens at once; its replies are returned. asked: job ids; None: those that `first` submits.
        """
        begin = self.picture.now
        leaving = self._take_over(begin)
        step = self._settle([*first, *leaving], begin)
        replies = step.replies[: len(first)]
        missing = set(asked) if asked is not None else _submitted(replies)
        missing.difference_update(self.starts)
        while not (self.complete or enough(self)):
            moment, wall = self._next(step)
            self.complete = not missing or moment == _NEVER
            if self.complete:
                break
            self.now = Instant(max(begin.wall + (moment - begin.boot), wall), moment)
            batch = [*self._ended(moment), Woke()]
            step = self._settle(batch, self.now)
            missing.difference_update(self.starts)
        return replies

    def endless(self) -> list[int]:
        """The jobs that run on at the end, because nobody knows for how long."""
        return sorted(i for i in self.engine.view.live if i in self._works and self._works[i].left is None)

    def in_the_way(self, other: Job, job: Job) -> bool:
        """`other` is alive and has something that `job` could use."""
        view = self.engine.view
        held = view.live[other.id].uuids
        return not view.kind(job.spec.request).isdisjoint(held) if job.spec.request.gpus else not held

    # ---- inside ---------------------------------------------------------------------------------------------

    def _next(self, step: Step) -> tuple[float, float]:
        """The next moment (boot clock) at which something happens, and the wall clock that it must have reached."""
        while self._ends and not self._is_live(self._ends[0][2]):
            heappop(self._ends)
        later = self.now.boot + _SAME
        moment, wall = self._ends[0][0] if self._ends else _NEVER, 0.0
        if step.wake_boot is not None:
            moment = min(moment, max(later, step.wake_boot))
        if step.wake_wall is not None:
            boot = max(later, self.now.boot + step.wake_wall - self.now.wall)
            if boot <= moment:
                moment, wall = boot, step.wake_wall
        return moment, wall

    def _settle(self, batch: Sequence[Event], now: Instant) -> Step:
        """Handle a batch and all that follows from it at the same moment. The replies are those of the batch."""
        replies: tuple[Reply, ...] | None = None
        while True:
            self.steps += 1
            step = self.engine.handle(batch, now)
            replies = step.replies if replies is None else replies
            batch = self._act(step, now)
            if not batch:
                return Step(step.changes, replies, (), step.wake_boot, step.wake_wall)

    def _act(self, step: Step, now: Instant) -> list[Event]:
        followed: list[Event] = []
        for action in step.actions:
            if isinstance(action, Launch):
                self._launch(action, now)
                followed.append(AttemptStarted(action.attempt, pid=1, watching=True))
            elif isinstance(action, Ask) and action.what is Asked.STOP:
                followed += self._stop(action.attempt, action.deadline, now)
        return followed

    def _launch(self, action: Launch, now: Instant) -> None:
        job = self.engine.state.jobs[action.attempt.job_id]
        self.starts.setdefault(job.id, now.wall)
        work = self._works.get(job.id)
        if work is None:
            left = seconds_left(self.engine.view, job, 0.0, self.guess)
            work = self._works[job.id] = Work(left, job.spec.request.gpus)
        self._runs(job, action.attempt, work, len(action.devices), now.boot)

    def _runs(self, job: Job, key: AttemptKey, work: Work, devices: int, since: float) -> None:
        if work.left is not None and devices != work.devices:
            work.left *= speedup(job.speeds, devices, work.devices)
        work.devices = devices
        self._since[key] = since
        if work.left is not None:
            heappush(self._ends, (since + work.left, job.id, key, False))

    def _stop(self, key: AttemptKey, deadline: float | None, now: Instant) -> list[Event]:
        """It leaves at once; at most at the end of its grace period."""
        if not self._is_live(key):
            return []
        if self.guess is Guess.LONG and deadline is not None and deadline > now.boot + _SAME:
            heappush(self._ends, (deadline, key.job_id, key, True))
            return []
        return [self._leaves(key, now.boot)]

    def _leaves(self, key: AttemptKey, now: float) -> AttemptExited:
        """It goes before its work is done. What it has not saved is to be done again."""
        view = self.engine.view
        job, attempt, work = view.jobs[key.job_id], view.live[key.job_id], self._works[key.job_id]
        saves = attempt.watching or attempt.saved is not None or job.saved is not None
        since = self._since.pop(key)
        done = now - since if saves else (attempt.started or since) - since
        if work.left is not None:
            work.left = max(0.0, work.left - done) + cost(view, job)
        return AttemptExited(key, _SAVED if saves else Outcome(OutcomeKind.SIGNALLED, signal=15), attempt.uuids)

    def _ended(self, moment: float) -> list[Event]:
        events: list[Event] = []
        over: set[AttemptKey] = set()
        while self._ends and self._ends[0][0] <= moment + _SAME:
            end, _, key, unfinished = heappop(self._ends)
            if key in over or not self._is_live(key):
                continue
            over.add(key)
            if unfinished:
                events.append(self._leaves(key, end))
            else:
                events.append(AttemptExited(key, _DONE, self.engine.view.live[key.job_id].uuids))
        return events

    def _is_live(self, key: AttemptKey) -> bool:
        attempt = self.engine.view.live.get(key.job_id)
        return attempt is not None and attempt.number == key.number

    def _take_over(self, now: Instant) -> list[Event]:
        """What is alive in the picture, and what of it changes at once."""
        view, events = self.engine.view, list[Event]()
        for key, gone in view.leaving.items():
            if key not in view.overdue and gone.outcome is not None:
                events.append(AttemptExited(key, gone.outcome, gone.uuids))
        for attempt in sorted(view.live.values(), key=lambda a: a.key):
            events += self._goes_on(view.jobs[attempt.job_id], attempt, now)
        return events

    def _goes_on(self, job: Job, attempt: Attempt, now: Instant) -> list[Event]:
        left = seconds_left(self.engine.view, job, running_for(self.engine.view, job, now), self.guess)
        work = self._works[job.id] = Work(left, len(attempt.devices))
        stop = job.stop
        if job.state is JobState.STOPPING and stop is not None and stop.kind is not StopKind.SHUTDOWN:
            self._since[attempt.key] = now.boot
            if stop.kills >= _STUCK:
                work.left = None
                return []
            return self._stop(attempt.key, stop.deadline, now)
        self._runs(job, attempt.key, work, len(attempt.devices), now.boot)
        return [] if attempt.started is not None else [AttemptStarted(attempt.key, pid=1)]


def _submitted(replies: Sequence[Reply]) -> set[int]:
    return {job_id for reply in replies for job_id in getattr(reply, "job_ids", ())[:1]}
