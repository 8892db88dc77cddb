"""Plays a workload in virtual time, with the engine's invariants checked after every step, and each decision watched.

    play = Play(4, rules, [Arrival(0, 700, gpus=2), Arrival(60, 5, qos="high")])
    play.run()
    assert play.waited(0) == 0

Jobs run as long as the test says. Who is asked to leave saves, leaves (after `leaving` seconds), and has `cost` seconds
of work more to do. The other shell in virtual time, gpusched/simulator, is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from builders import Gpu, World
from things import PEOPLE, spec

from gpusched.engine import invariants, schedule
from gpusched.model.actions import Ask, Asked, Launch
from gpusched.model.changes import Step, Submitted
from gpusched.model.clock import Instant
from gpusched.model.events import AttemptProgressed, AttemptStarted, Event, JobSubmitted, Woke
from gpusched.model.job import AttemptKey, Job
from gpusched.model.rules import Rules
from gpusched.model.state import Outcome, OutcomeKind, Saved
from gpusched.policy.cycle import cycle
from gpusched.policy.decisions import Decision
from gpusched.policy.view import View

SAME = 1e-6  # seconds
MOST_AT_ONCE = 200  # batches that follow from each other in one moment
DONE = Outcome(OutcomeKind.EXITED, code=0)
SAVED = Outcome(OutcomeKind.EXITED, code=85, saved=Saved("ckpt", 1))
Watch = Callable[["Play", View, Instant, Decision], None]
Other = tuple[float, Callable[[World], Event]]


@dataclass(frozen=True)
class Arrival:
    """A job (or array) that is submitted `at` seconds after the beginning and runs `lasts` seconds in all."""

    at: float
    lasts: float
    by: str = "ann"
    wanted: dict[str, Any] = field(default_factory=dict)  # gpus=, qos=, expected=, array=, … as World.submit takes them


class Told(World):
    """The world, remembering what the engine has answered."""

    def __init__(self, *gpus: int | Gpu, rules: Rules, checked: bool) -> None:
        self.steps: list[Step] = []
        self.checked = checked
        super().__init__(*gpus, rules=rules)

    def decide(self, *events: Event) -> Step:
        step = self.engine.handle(events, self.now)
        if self.checked:
            invariants.check(self.engine, self.now)
        self.steps.append(step)
        return step


class Play:
    def __init__(
        self, gpus: int | Iterable[Gpu], rules: Rules, arrivals: Iterable[Arrival], *, cost: float = 0.0,
        leaving: float = 0.0, watch: Watch | None = None, checked: bool = True, others: Iterable[Other] = (),
        rate: Callable[[Job, int], float] = lambda job, devices: 1.0,
    ) -> None:  # fmt: skip
        """checked: the engine's invariants are looked at after every step (slow).
        others: what else happens, seconds after the beginning, and the event that tells of it then.
        rate: seconds of work that a job does in a second on so many devices."""
        given = [gpus] if isinstance(gpus, int) else list(gpus)
        self.world = Told(*given, rules=rules, checked=checked)
        self.began = self.world.now.boot
        self.to_come = sorted(arrivals, key=lambda a: a.at)
        self.others = sorted(others, key=lambda other: other[0])
        self.cost, self.leaving, self.watch, self.rate = cost, leaving, watch, rate
        self.left: dict[int, float] = {}  # seconds of work
        self.lasts: dict[int, float] = {}
        self.arrived: dict[int, float] = {}  # seconds since the beginning
        self.first: dict[int, float] = {}  # its first start
        self.ended: dict[int, float] = {}
        self.running: dict[AttemptKey, float] = {}  # since when (boot clock)
        self.asked: dict[AttemptKey, float] = {}  # when (boot clock) it leaves
        self._lasting: list[float] = []  # of the jobs that are being submitted

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.world.now.boot - self.began

    @property
    def goes_on(self) -> bool:
        """Something is still to happen."""
        return self._next() < float("inf")

    @property
    def view(self) -> View:
        return self.world.engine.view

    def run(self, until: float = float("inf"), most: int = 20_000) -> None:
        """To the end, or until so many seconds after the beginning. Raises AssertionError if it goes on and on."""
        for _ in range(most):
            following = self._next()
            if following > until or following == float("inf"):
                if until != float("inf"):
                    self.world.now = self.world.now.later(until - self.now)
                return
            self.step()
        raise AssertionError(f"it goes on and on: {self.now} s, {sorted(self.left)} have not ended")

    def step(self) -> None:
        """Whatever happens next, and all that follows from it at the same moment."""
        world, moment = self.world, self._next()
        world.now = world.now.later(max(0.0, moment - self.now))
        batch = self._over()
        while self.to_come and self.to_come[0].at <= moment + SAME:
            batch.append(self._submission(self.to_come.pop(0)))
        while self.others and self.others[0][0] <= moment + SAME:
            batch.append(self.others.pop(0)[1](world))
        self._handle(batch or [Woke()])

    def submit(self, lasts: float, by: str = "ann", **wanted: Any) -> int:
        """A job that comes now. Returns its id."""
        return self._handle([self._submission(Arrival(self.now, lasts, by, wanted))])[0]

    def progress(self, job: int, step: float, total: float) -> None:
        """The job has told how far it is."""
        self._handle([AttemptProgressed(self.world.key(job), step, self.world.now.wall, total)])

    def waited(self, job: int) -> float:
        """Seconds from its submission to its first start."""
        return self.first[job] - self.arrived[job]

    # ---- inside ---------------------------------------------------------------------------------------------

    def _next(self) -> float:
        moments = [self._end(key) for key in self.running if key not in self.asked]
        moments += self.asked.values()
        if self.world.wake_boot is not None:
            moments.append(self.world.wake_boot)
        moments = [moment - self.began for moment in moments]
        if self.world.wake_wall is not None:
            moments.append(self.world.wake_wall - self.world.now.wall + self.now)
        if self.to_come:
            moments.append(self.to_come[0].at)
        if self.others:
            moments.append(self.others[0][0])
        return max(self.now, min(moments, default=float("inf")))

    def _end(self, key: AttemptKey) -> float:
        return self.running[key] + self.left[key.job_id] / self._rate(key)

    def _rate(self, key: AttemptKey) -> float:
        return self.rate(self.world.engine.state.jobs[key.job_id], len(self.view.live[key.job_id].devices))

    def _over(self) -> list[Event]:
        """The ends of attempts that have come by now."""
        events: list[Event] = []
        now = self.world.now.boot
        for key in sorted(self.running):
            if key in self.asked and self.asked[key] <= now + SAME:
                events.append(self._leaves(key))
            elif key not in self.asked and self._end(key) <= now + SAME:
                del self.running[key]
                self.left[key.job_id] = 0.0
                events.append(self.world.end(key, DONE))
        return events

    def _leaves(self, key: AttemptKey) -> Event:
        self.left[key.job_id] += self.cost - (self.world.now.boot - self.running.pop(key)) * self._rate(key)
        del self.asked[key]
        return self.world.end(key, SAVED)

    def _submission(self, arrival: Arrival) -> JobSubmitted:
        self._lasting.append(arrival.lasts)
        fields = {name: value for name, value in arrival.wanted.items() if name != "array"}
        return JobSubmitted(spec(**fields), PEOPLE[arrival.by], array=arrival.wanted.get("array"))

    def _handle(self, batch: list[Event]) -> list[int]:
        """A batch and what follows from it at once. Returns the ids of the jobs that were submitted."""
        world, ids, rounds = self.world, list[int](), 0
        while batch:
            rounds += 1
            assert rounds < MOST_AT_ONCE, f"it goes on and on at {self.now} s: {self.view.live}"
            with patch.object(schedule, "cycle", self._watched):
                replies = world.handle(*batch)
            for event, reply in zip(batch, replies, strict=True):
                if isinstance(event, JobSubmitted):
                    lasts = self._lasting.pop(0)
                    ids += self._take_in(reply, lasts)
            for key in [key for key in self.running if self._final(key.job_id)]:
                del self.running[key]
            for job_id in [i for i in self.left if i not in self.ended and self._final(i)]:
                self.ended[job_id] = self.now
                del self.left[job_id]
            batch = self._follow()
        return ids

    def _take_in(self, reply: Any, lasts: float) -> Iterator[int]:
        for job_id in reply.job_ids if isinstance(reply, Submitted) else ():  # else it was refused
            self.left[job_id] = self.lasts[job_id] = lasts
            self.arrived[job_id] = self.now
            yield job_id

    def _final(self, job_id: int) -> bool:
        return self.world.job(job_id).state.final

    def _follow(self) -> list[Event]:
        events: list[Event] = []
        for action in self.world.take(object):  # type: ignore[type-abstract]
            if isinstance(action, Launch):
                key = action.attempt
                self.first.setdefault(key.job_id, self.now)
                self.running[key] = self.world.now.boot
                self.world.processes[key].started = True
                events.append(AttemptStarted(key, 4000 + key.job_id, watching=True))
            elif isinstance(action, Ask) and action.what is Asked.STOP and action.attempt in self.running:
                self.asked.setdefault(action.attempt, self.world.now.boot + self.leaving)
        return events + (self._over() if not events else [])

    def _watched(self, view: View, now: Instant) -> Iterator[Decision]:
        for decision in cycle(view, now):
            if self.watch is not None:
                self.watch(self, view, now, decision)
            yield decision
