"""The shell of a simulation: virtual time, attempts that only take time, the engine behind its one door.

What the daemon's shell does with processes, this one does with a heap of ends: a launch puts one in, a request to
stop ends the attempt at once, saved, with the cost of being moved added to the work that is left. It decides nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush

from gpusched.engine.engine import Engine
from gpusched.model.actions import Ask, Asked, Launch
from gpusched.model.changes import Step, Submitted
from gpusched.model.clock import Instant
from gpusched.model.device import DeviceReading, Occupancy
from gpusched.model.errors import GpuschedError, Refused
from gpusched.model.events import AttemptExited, AttemptStarted, DevicesSampled, Event, JobSubmitted, Woke
from gpusched.model.job import AttemptKey, Caller, JobSpec, Request
from gpusched.model.policy import PolicyName, PreemptCost
from gpusched.model.rules import Rules
from gpusched.model.state import Outcome as Ending
from gpusched.model.state import OutcomeKind, Saved
from gpusched.simulator.workload import Fate, Fleet, Outcome, Span, TraceJob, Workload
from gpusched.store.memory import MemoryStore

_SAME = 1e-9  # seconds: what is closer together happens at once
_NEVER = float("inf")
_DONE = Ending(OutcomeKind.EXITED, code=0)
_SAVED = Ending(OutcomeKind.EXITED, code=85, saved=Saved("simulated"))
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Running:
    """A simulated attempt."""

    key: AttemptKey
    since: float
    end: float
    devices: tuple[str, ...]


@dataclass(slots=True)
class Life:
    """What a job has been through so far. left: seconds of work, the cost of being moved included."""

    job: TraceJob
    left: float
    started: float | None = None
    preemptions: int = 0
    held: float = 0.0
    lost: float = 0.0
    running: Running | None = None


@dataclass(slots=True)
class World:
    """One simulation under way."""

    workload: Workload
    fleet: Fleet
    rules: Rules
    durations_given: bool
    cost: PreemptCost
    progress: Progress | None
    timeline: bool
    lives: dict[int, Life] = field(default_factory=dict)
    ends: list[tuple[float, int, AttemptKey]] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    events: int = 0

    def run(self) -> Outcome:
        engine, store = Engine(self.rules, "simulated", story=False), MemoryStore()
        jobs, submits = self.workload.jobs, self._submits()
        began, arrived, wake = time.process_time(), 0, _NEVER
        start = jobs[0].submit if jobs else 0.0
        self._handle(engine, store, [self._sample()], Instant(start, start))
        while True:
            ends = self.ends[0][0] if self.ends else _NEVER
            arrives = jobs[arrived].submit if arrived < len(jobs) else _NEVER
            moment = min(wake, ends, arrives)
            if moment == _NEVER:
                break
            now = Instant(moment, moment)
            batch = self._ended(moment)
            while arrived < len(jobs) and jobs[arrived].submit <= moment + _SAME:
                batch.append(submits[arrived])
                arrived += 1
            if wake <= moment + _SAME or not batch:
                batch.append(Woke())
            step = self._settle(engine, store, batch, now)
            wake = _NEVER if step.wake_boot is None else max(step.wake_boot, moment + _SAME)
        finished = {id(fate.job) for fate in self.fates}
        unfinished = tuple(job for job in jobs if id(job) not in finished)
        name = self.rules.policy.name
        return Outcome(
            str(name), self.fleet, tuple(self.fates), unfinished, tuple(self.spans), self.events,
            time.process_time() - began,
        )

    def _settle(self, engine: Engine, store: MemoryStore, batch: list[Event], now: Instant) -> Step:
        """Handle a batch and all that follows from it at the same moment."""
        while True:
            step = self._handle(engine, store, batch, now)
            batch = self._act(step, now.boot)
            if not batch:
                return step

    def _handle(self, engine: Engine, store: MemoryStore, batch: list[Event], now: Instant) -> Step:
        self.events += len(batch)
        step = engine.handle(batch, now)
        store.commit((step.changes,))
        for reply in step.replies:
            if reply is None:
                continue
            if isinstance(reply, Submitted):
                self._take_in(reply.job_ids[0])
            elif isinstance(reply, GpuschedError):
                job = self.workload.jobs[len(self.lives) + len(self.fates)]  # the first that has not been taken in
                raise Refused(f"the simulated machine refuses a job, {job.id}: {reply.message}", reply.hint)
        return step

    def _take_in(self, job_id: int) -> None:
        job = self.workload.jobs[job_id - 1]  # ids are given in the order of submission
        self.lives[job_id] = Life(job, job.duration)

    def _act(self, step: Step, now: float) -> list[Event]:
        """What the machine does with the engine's actions, and what is to be told of it at once."""
        followed: list[Event] = []
        for action in step.actions:
            if isinstance(action, Launch):
                followed.append(self._launch(action, now))
            elif isinstance(action, Ask) and action.what is Asked.STOP:
                exited = self._stop(action.attempt, now)
                if exited is not None:
                    followed.append(exited)
        return followed

    def _launch(self, action: Launch, now: float) -> AttemptStarted:
        life, key = self.lives[action.attempt.job_id], action.attempt
        if life.started is None:
            life.started = now
        life.running = Running(key, now, now + life.left, tuple([share.uuid for share in action.devices]))
        heappush(self.ends, (life.running.end, key.job_id, key))
        return AttemptStarted(key, pid=key.job_id, watching=True)

    def _stop(self, key: AttemptKey, now: float) -> AttemptExited | None:
        """It saves and leaves at once; what that and the way back cost is work to be done when it runs again."""
        life = self.lives[key.job_id]
        running = life.running
        if running is None or running.key != key:
            return None
        self._leave(life, running, now)
        price = self.cost.of(life.job.gpus)
        life.left += price - (now - running.since)
        life.lost += price * life.job.gpus
        life.preemptions += 1
        return AttemptExited(key, _SAVED, running.devices)

    def _ended(self, now: float) -> list[Event]:
        """The attempts that have done all their work by now."""
        events: list[Event] = []
        while self.ends and self.ends[0][0] <= now + _SAME:
            _, job_id, key = heappop(self.ends)
            life = self.lives.get(job_id)  # none: it was moved at the very last moment, and has ended since
            running = None if life is None else life.running
            if life is None or running is None or running.key != key:
                continue  # it was asked to stop before
            self._leave(life, running, running.end)
            started = life.started if life.started is not None else running.since
            self.fates.append(Fate(life.job, started, running.end, life.preemptions, life.held, life.lost))
            events.append(AttemptExited(key, _DONE, running.devices))
            del self.lives[job_id]
            if self.progress is not None and len(self.fates) % 256 == 0:
                self.progress(len(self.fates), len(self.workload.jobs))
        return events

    def _leave(self, life: Life, running: Running, now: float) -> None:
        life.held += (now - running.since) * life.job.gpus
        life.running = None
        if self.timeline:
            for uuid in running.devices:
                self.spans.append(Span(int(uuid), life.job.id, running.since, now))

    def _sample(self) -> DevicesSampled:
        fleet, occupied = self.fleet, []
        for index in range(fleet.devices):
            group = f"node {index // fleet.per_node}"
            reading = DeviceReading(str(index), index, "simulated", fleet.memory_mib, 0, group=group)
            occupied.append(Occupancy(reading))
        return DevicesSampled(tuple(occupied))

    def _submits(self) -> list[JobSubmitted]:
        """Equal specs, requests and callers are one object each: there may be a hundred thousand."""
        specs: dict[tuple[object, ...], JobSpec] = {}
        requests: dict[tuple[int, int | None], Request] = {}
        callers: dict[str, Caller] = {}
        made = []
        for job in self.workload.jobs:
            size = job.gpus, job.gpu_mem_mib
            expected = job.duration if self.durations_given else None
            what = size, job.name, job.account, expected
            spec = specs.get(what)
            if spec is None:
                if size not in requests:
                    requests[size] = Request(*size, shared=job.gpu_mem_mib is not None)
                command, request = ("simulated",), requests[size]
                spec = JobSpec(command, "/", job.name, request, account=job.account, expected=expected)
                specs[what] = spec
            user = job.user or "somebody"
            if user not in callers:
                callers[user] = Caller(1000 + len(callers), 1000, user)
            made.append(JobSubmitted(spec, callers[user]))
        return made


def simulate(
    workload: Workload,
    fleet: Fleet,
    rules: Rules,
    *,
    durations: str = "given",
    cost: PreemptCost,
    progress: Progress | None = None,
    timeline: bool = False,
) -> Outcome:
    """Run a workload through the engine in virtual time.

    durations: "given" (every job declares its true run time in advance) or "unknown" (nobody does). Under `predicted`
    nobody does in any case: it would be no prediction.
    cost: what being moved really costs a job, added to its work; the rules hold what the policy assumes.
    progress: called now and then with the number of jobs that have ended, and of all.
    Raises Refused for a job that the fleet can never run.
    """
    with _quiet_collector():
        told = durations == "given" and rules.policy.name is not PolicyName.PREDICTED
        return World(workload, fleet, rules, told, cost, progress, timeline).run()


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """The engine's records hold no cycles: looking for them again and again among a million would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
