"""A small world around the engine, so that a case is a few lines long.

    world = World(2)                          # two devices of 24 GiB
    low = world.submit(gpus=2, qos="low")
    world.started(low)
    high = world.submit(qos="high")
    world.exits(low, code=85, saved_step=3)
    assert world.where(high) == (0,)

The world plays the shell (commit, then act), the machine (processes, devices, memory) and the clock. It checks the
engine's invariants after every step, and its own: one process tree per job, one owner per device. `crash` throws
the engine away and builds it anew from what was committed and what is still there to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from things import GIB, PEOPLE, Gpu, Process, gpu, may_start, spec

from gpusched.engine import invariants
from gpusched.engine.engine import Engine, unknown_dependencies
from gpusched.model import spans
from gpusched.model.actions import Action, Ask, Asked, Kill, Launch
from gpusched.model.changes import Answer, Step, Submitted
from gpusched.model.clock import Instant
from gpusched.model.errors import GpuschedError
from gpusched.model.events import (
    AttemptExited,
    AttemptProgressed,
    AttemptSaved,
    AttemptStarted,
    AttemptWatching,
    CancelRequested,
    CheckpointRequested,
    CronFired,
    DevicesSampled,
    Event,
    HoldRequested,
    JobSubmitted,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    ServiceStarted,
    UpdateRequested,
    Woke,
)
from gpusched.model.job import Attempt, AttemptKey, Job, Share
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved
from gpusched.policy import explain
from gpusched.store.memory import MemoryStore

__all__ = ["GIB", "PEOPLE", "Gpu", "Process", "World", "gpu", "spec"]
A = TypeVar("A", bound=Action)


class World:
    def __init__(self, *gpus: int | Gpu, rules: Rules | None = None) -> None:
        """gpus: how many of the usual kind, or the devices themselves."""
        self.rules = (rules or Rules.default()).check()
        self.gpus: list[Gpu] = []
        for item in gpus:
            self.gpus += [Gpu(i) for i in range(item)] if isinstance(item, int) else [replace(item)]
        self.now = Instant(1_000_000.0, 1_000.0)
        self.store = MemoryStore()
        self.processes: dict[AttemptKey, Process] = {}
        self.pending: list[Action] = []  # actions that the test has not looked at
        self.wake_boot: float | None = None
        self.wake_wall: float | None = None
        self.probe_error: str | None = None
        self.acknowledged: set[int] = set()
        self.engine = self._fresh_engine()
        self.sample()

    # ---- the shell ------------------------------------------------------------------------------------------

    def handle(self, *events: Event) -> tuple[Any, ...]:
        """One batch, as the daemon does it: handle, commit, answer, act."""
        step = self.decide(*events)
        self.commit(step)
        self.act(step)
        return step.replies

    def decide(self, *events: Event) -> Step:
        step = self.engine.answered(self.engine.handle(events, self.now), self.now)
        invariants.check(self.engine, self.now)
        self._reasons_are_true()
        return step

    def commit(self, step: Step) -> None:
        self.store.commit([step.changes])

    def act(self, step: Step) -> None:
        for reply in step.replies:
            if isinstance(reply, Submitted):
                self.acknowledged.update(reply.job_ids)
        for action in step.actions:
            self._perform(action)
        self.pending += step.actions
        self.wake_boot, self.wake_wall = step.wake_boot, step.wake_wall

    def crash(self) -> None:
        """The daemon is gone and starts again: state from the store, then what there is to be seen."""
        self.pending.clear()
        self.engine = self._fresh_engine()
        events: list[Event] = [self.reading()]
        for attempt in sorted(self.engine.view.live.values(), key=lambda a: a.key):
            events += self._observed(attempt)
        self.handle(*events, ServiceStarted())

    def _fresh_engine(self) -> Engine:
        engine = Engine(self.rules, "boot")
        engine.look_at = 3  # let go of ended jobs early, so that small worlds see it too
        engine.restore(self.store.load(), self.now)
        return engine

    def _observed(self, attempt: Attempt) -> list[Event]:
        process, key = self.processes.get(attempt.key), attempt.key
        if process is None:
            return [AttemptExited(key, Outcome(OutcomeKind.NEVER_STARTED))]
        facts: list[Event] = [AttemptStarted(key, 4000 + key.job_id)] if process.started else []
        if process.watching:
            facts.append(AttemptWatching(key))
        if process.saved is not None:
            facts.append(AttemptSaved(key, process.saved))
        if process.outcome is not None:
            facts.append(AttemptExited(key, process.outcome, process.clear))
        return facts

    def _perform(self, action: Action) -> None:
        match action:
            case Launch(key, _, shares):
                self._launch(key, shares)
            case Ask(key) if key in self.processes:
                self.processes[key].asked.append(action)
            case Kill(key) if key in self.processes:
                self.processes[key].killed += 1
            case _:
                pass

    def _launch(self, key: AttemptKey, shares: tuple[Share, ...]) -> None:
        known = {g.uuid for g in self.gpus}
        assert all(share.uuid in known for share in shares), f"{key} is launched on devices that are not there"
        may_start(self.processes, key, shares)
        self.processes[key] = Process(shares, on={share.uuid for share in shares})

    def _reasons_are_true(self) -> None:
        """No job is said to be about to start when the cycle is over; many reasons at once say what each one says."""
        waiting = [j for j in self.engine.state.jobs.values() if j.state is JobState.PENDING]
        at_once = explain.reasons(self.engine.view, waiting, self.now)
        for job in waiting:
            alone = explain.reason(self.engine.view, job, self.now)
            # by count alone (published simulators) devices may stay idle beside who was counted in and does not fit
            excused = job.id in self.engine.state.waiting_for_time or not self.rules.policy.calm
            assert excused or alone.word is not explain.Word.STARTING, f"{job.key} could start, and was not started"
            assert at_once[job.id].word is alone.word, f"{job.key}: {at_once[job.id]}, but alone {alone}"

    # ---- people ---------------------------------------------------------------------------------------------

    def submit(self, by: str = "ann", **wanted: Any) -> int:
        """Submit a job or an array (`array="0-3%2"`). Returns its id (an array's: that of its first element)."""
        return self.submitted(by, **wanted).job_ids[0]

    def submitted(self, by: str = "ann", **wanted: Any) -> Submitted:
        (reply,) = self.handle(self.submission(by, **wanted))
        if isinstance(reply, GpuschedError):
            raise reply
        assert isinstance(reply, Submitted)
        return reply

    def submission(self, by: str = "ann", **wanted: Any) -> JobSubmitted:
        extra = {name: wanted.pop(name) for name in ("array", "hold", "next_run", "recalled") if name in wanted}
        event = JobSubmitted(spec(**wanted), PEOPLE[by], **extra)
        if "recalled" not in extra:
            missing = unknown_dependencies(self.engine, event.spec.dependency)
            event = replace(event, recalled=tuple(job for key in missing for job in self._ended(key)))
        return event

    def preview(self, **wanted: Any) -> str:
        before = repr((self.engine.state, self.engine.view.buckets))
        text = self.engine.preview(self.submission(**wanted), self.now)
        assert repr((self.engine.state, self.engine.view.buckets)) == before, "a preview has left traces"
        return text

    def ask(self, kind: Any, *jobs: int | str, by: str = "ann", **fields: Any) -> tuple[Answer, ...]:
        keys = tuple(map(str, jobs))
        recalled = tuple(job for key in keys for job in self._ended(key))
        (answers,) = self.handle(kind(keys, PEOPLE[by], recalled=recalled, **fields))
        assert isinstance(answers, tuple)
        return answers

    def _one(self, kind: Any, *jobs: int | str, by: str = "ann", **fields: Any) -> str:
        answers = self.ask(kind, *jobs, by=by, **fields)
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return answers[0].done

    def cancel(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(CancelRequested, *jobs, by=by)

    def hold(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(HoldRequested, *jobs, by=by)

    def release(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(ReleaseRequested, *jobs, by=by)

    def requeue(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(RequeueRequested, *jobs, by=by)

    def preempt(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(PreemptRequested, *jobs, by=by)

    def checkpoint(self, *jobs: int | str, by: str = "ann") -> str:
        return self._one(CheckpointRequested, *jobs, by=by)

    def update(self, job: int | str, by: str = "ann", **fields: Any) -> str:
        return self._one(UpdateRequested, job, by=by, **fields)

    def cron_fires(self, job: int, next_in: float = 3600.0) -> None:
        due = self.job(job).spec.begin
        assert due is not None
        self.handle(CronFired(job, due, due + next_in))

    # ---- jobs -----------------------------------------------------------------------------------------------

    def key(self, job: int, attempt: int | None = None) -> AttemptKey:
        return AttemptKey(job, self.job(job).attempt if attempt is None else attempt)

    def started(self, *jobs: int, attempt: int | None = None) -> None:
        for job in jobs:
            key = self.key(job, attempt)
            if key in self.processes:
                self.processes[key].started = True
            self.handle(AttemptStarted(key, 4000 + job))

    def watches(self, job: int) -> None:
        self.processes[self.key(job)].watching = True
        self.handle(AttemptWatching(self.key(job)))

    def saves(self, job: int, step: int, attempt: int | None = None) -> None:
        key, saved = self.key(job, attempt), Saved(f"ckpt-{step}", step, self.now.wall)
        if key in self.processes:
            self.processes[key].saved = saved
        self.handle(AttemptSaved(key, saved))

    def progresses(self, job: int, step: float, total: float | None = None) -> None:
        """The job has told how far it is."""
        self.handle(AttemptProgressed(self.key(job), step, self.now.wall, total))

    def exits(
        self, job: int, code: int | None = 0, *, signal: int | None = None, saved_step: int | None = None,
        clear: bool | Sequence[int] = True, attempt: int | None = None,
    ) -> None:  # fmt: skip
        """The attempt has ended. clear: whether (or which of) its devices were seen free in that moment."""
        saved = None if saved_step is None else Saved(f"ckpt-{saved_step}", saved_step, self.now.wall)
        if signal is not None:
            killed = self.processes[self.key(job, attempt)].killed > 0
            outcome = Outcome(OutcomeKind.SIGNALLED, signal=signal, saved=saved, killed=killed)
        else:
            outcome = Outcome(OutcomeKind.EXITED, code=code, saved=saved)
        self.ends(job, outcome, clear, attempt)

    def lost(self, job: int) -> None:
        self.ends(job, Outcome(OutcomeKind.LOST, text="its supervisor is gone"))

    def launch_fails(self, job: int, text: str = "no such file: train") -> None:
        self.ends(job, Outcome(OutcomeKind.LAUNCH_FAILED, errno=2, text=text))

    def never_starts(self, job: int, text: str = "") -> None:
        key = self.key(job)
        del self.processes[key]
        self.handle(AttemptExited(key, Outcome(OutcomeKind.NEVER_STARTED, text=text)))

    def ends(self, job: int, outcome: Outcome, clear: bool | Sequence[int] = True, attempt: int | None = None) -> None:
        key = self.key(job, attempt)
        self.handle(self.end(key, outcome, clear))

    def end(self, key: AttemptKey, outcome: Outcome, clear: bool | Sequence[int] = True) -> AttemptExited:
        """The attempt ends in the world; the event says so."""
        process = self.processes.get(key)
        if process is None or not process.alive:
            return AttemptExited(key, outcome)
        process.outcome = outcome
        free = [f"GPU-{i}" for i in clear] if not isinstance(clear, bool) else [s.uuid for s in process.shares] * clear
        process.on -= set(free)
        return AttemptExited(key, outcome, process.clear)

    # ---- devices and time -----------------------------------------------------------------------------------

    def reading(self) -> DevicesSampled:
        if self.probe_error is not None:
            return DevicesSampled((), self.probe_error)
        return DevicesSampled(tuple(g.occupancy(self.processes) for g in self.gpus if not g.missing))

    def sample(self) -> None:
        self.handle(self.reading())

    def leaves(self, job: int, attempt: int | None = None) -> None:
        """The memory of an ended attempt is gone from all its devices; the next sample shows it."""
        self.processes[self.key(job, attempt)].on.clear()
        self.sample()

    def fails(self, index: int, fault: str = "it has fallen off the bus") -> None:
        self._set(index, fault=fault)

    def recovers(self, index: int) -> None:
        self._set(index, fault="")

    def vanishes(self, index: int) -> None:
        """The driver no longer lists the device."""
        self.unplug(index)
        self.sample()

    def comes_back(self, index: int) -> None:
        self.plug_in(index)
        self.sample()

    def unplug(self, index: int) -> None:
        self._gpu(index).missing = True

    def plug_in(self, index: int) -> None:
        """A device that was gone comes back with nothing of ended processes in its memory."""
        for process in self.processes.values():
            if self._gpu(index).missing and not process.alive:
                process.on.discard(self._gpu(index).uuid)
        self._gpu(index).missing = False

    def _gpu(self, index: int) -> Gpu:
        return next(g for g in self.gpus if g.index == index)

    def foreign(self, index: int, mib: int) -> None:
        """Somebody else's processes hold so much memory of the device."""
        self._set(index, foreign_mib=mib)

    def _set(self, index: int, **what: Any) -> None:
        vars(self._gpu(index)).update(what)
        self.sample()

    def passes(self, seconds: float) -> None:
        """Time passes; the engine is woken whenever it asked to be."""
        end = self.now.later(seconds)
        while (pause := self._next_wake()) is not None and self.now.boot + pause <= end.boot:
            self.now = self.now.later(max(0.0, pause))
            before = (self.wake_boot, self.wake_wall)
            self.handle(Woke())
            assert pause > 0 or (self.wake_boot, self.wake_wall) != before, f"woken in vain: {before} at {self.now}"
        self.now = end

    def _next_wake(self) -> float | None:
        pauses = [] if self.wake_boot is None else [self.wake_boot - self.now.boot]
        pauses += [] if self.wake_wall is None else [self.wake_wall - self.now.wall]
        return min(pauses, default=None)

    # ---- looking --------------------------------------------------------------------------------------------

    def job(self, job: int | str) -> Job:
        """The job; an element that waits folded into another's row as it would be with a row of its own."""
        if isinstance(job, str):
            array_id, _, index = job.partition("_")
            row = self.store.element(int(array_id), int(index))
            assert row is not None and row.array is not None, f"there is no job {job}"
            element = spans.with_index(row.elements, int(index))
            assert element is not None
            return _alone(self.engine.state.jobs.get(row.id, row), row.array.array_id + element.offset)
        found = self.engine.state.row(job) or self.store.job(job)
        assert found is not None, f"there is no job {job}"
        return _alone(found, job)

    def row(self, job: int) -> Job:
        """The row as it is, with the elements that are folded into it."""
        return self.engine.state.jobs[job]

    def _ended(self, key: str) -> list[Job]:
        """What the shell would recall for a request: ended jobs from the store."""
        head = key.partition("_")[0]
        if not (head.isascii() and head.isdigit()):
            return []
        job = self.store.job(int(head))
        found = [job] if job is not None and job.array is None else []
        if job is not None and job.array is not None:
            found = list(self.store.array(job.array.array_id))
        return [j for j in found if j.state.final]

    def states(self, *jobs: int) -> list[JobState]:
        return [self.job(job).state for job in jobs]

    def where(self, job: int) -> tuple[int, ...]:
        """Indexes of the devices of the job's live attempt."""
        attempt = self.engine.view.live.get(job)
        return tuple(sorted(int(uuid.removeprefix("GPU-")) for uuid in attempt.uuids)) if attempt else ()

    def running(self) -> set[int]:
        return set(self.engine.view.live)

    def why(self, job: int) -> explain.Reason:
        return explain.reason(self.engine.view, self.job(job), self.now)

    def story(self, job: int) -> list[str]:
        return [line.text for line in self.store.story(job)]

    def kinds(self, job: int) -> list[str]:
        return [line.kind for line in self.store.story(job)]

    def take(self, kind: type[A]) -> list[A]:
        """Actions of one kind that the test has not looked at yet."""
        found = [action for action in self.pending if isinstance(action, kind)]
        self.pending = [action for action in self.pending if not isinstance(action, kind)]
        return found

    def launched(self) -> list[int]:
        return [action.attempt.job_id for action in self.take(Launch)]

    def asked_to_stop(self) -> list[int]:
        return [action.attempt.job_id for action in self.take(Ask) if action.what is Asked.STOP]

    def killed(self) -> list[int]:
        return [action.attempt.job_id for action in self.take(Kill)]

    def nothing_left(self) -> None:
        assert not self.pending, f"more than expected: {self.pending}"


def _alone(row: Job, job_id: int) -> Job:
    """One element of a row, as it would be with a row of its own."""
    if not row.folded or row.array is None:
        return row
    element = spans.with_offset(row.elements, job_id - row.array.array_id)
    assert element is not None, f"{job_id} is not in {row.key}"
    return replace(row, id=job_id, array=replace(row.array, index=element.first), folded=())
