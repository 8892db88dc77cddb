"""One turn of the engine: everything that a batch of events changes, collected so that it can be committed as one.

All state changes go through `put_job` and `put_attempt`; they check the table of legal moves and keep the
view, the dependents and the rows to commit in step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpusched.engine.arrays import Arrays
from gpusched.engine.names import Name, Names
from gpusched.model.actions import Action
from gpusched.model.changes import Changes, StoryCopy, StoryLine
from gpusched.model.clock import Instant
from gpusched.model.device import Device
from gpusched.model.evolve import changed, evolve
from gpusched.model.job import Attempt, AttemptKey, Environment, Job, JobSpec, Share
from gpusched.model.past import taught
from gpusched.model.reservation import Reservation
from gpusched.model.rules import Rules
from gpusched.model.state import LEGAL_MOVES, JobState
from gpusched.policy.limits import forbidden
from gpusched.policy.view import View


class IllegalMove(AssertionError):
    """A bug: a job was moved where the table does not allow. The message holds what led there."""


class Facts(NamedTuple):
    """What the jobs that one key names have come to, as far as dependencies care."""

    known: bool
    unstarted: bool  # one of them has neither started nor ended
    unfinished: bool  # one of them has not ended
    completed: bool  # one of them has ended well
    failed: bool  # one of them has ended otherwise


@dataclass(slots=True)
class State:
    """All the engine knows. `view` holds the jobs and devices; the rest are indexes and counters."""

    rules: Rules
    boot_id: str
    view: View
    story: bool = True  # what happens is told in sentences, because somebody will read them
    next_job_id: int = 1
    arrays: Arrays = field(default_factory=Arrays)
    dependents: dict[str, set[int]] = field(default_factory=dict)  # job key as typed → who waits for it
    likes: dict[int, set[int]] = field(default_factory=dict)  # array id → rows that wait for it element by element
    told: dict[str, Facts] = field(default_factory=dict)  # the facts that those who wait for a key were told last
    names: Names = field(default_factory=Names)  # of unfinished jobs
    timed: set[int] = field(default_factory=set)  # live jobs with a time limit
    waiting_for_time: set[int] = field(default_factory=set)  # pending jobs with a begin time to come
    ended: set[int] = field(default_factory=set)  # final jobs that are still kept, because others need them
    look_at: float | None = None  # boot clock: when the policy wants to decide again, though nothing may have happened
    ranked_version: int = 0  # of what was learned of durations, when the waiting jobs were ranked last
    ranked_at: float | None = None  # boot clock
    observing: bool = True  # messages come as things happen; not while a restarted daemon looks at what has happened
    late: Counter[str] = field(default_factory=Counter)  # messages about attempts that are over, by kind

    @property
    def jobs(self) -> dict[int, Job]:
        return self.view.jobs

    def attempt(self, key: AttemptKey) -> Attempt | None:
        """The attempt, if it lives or still holds devices."""
        live = self.view.live.get(key.job_id)
        if live is not None and live.number == key.number:
            return live
        return self.view.leaving.get(key)

    def row(self, job_id: int) -> Job | None:
        """The row of a job: its own, or the one into which the element is folded."""
        return self.jobs.get(job_id) or self.arrays.holding(self.jobs, job_id)

    def elements(self, array_id: int) -> list[Job]:
        """Those rows of an array that the engine keeps, in the order of their ids."""
        return self.arrays.elements(self.jobs, array_id)

    def element(self, array_id: int, index: int) -> Job | None:
        """The row of an element: its own, or the one into which it is folded."""
        return self.arrays.element(self.jobs, array_id, index)


class Turn:
    def __init__(self, state: State, now: Instant) -> None:
        self.state = state
        self.view = state.view
        self.rules = state.rules
        self.now = now
        self.dirty = False  # something that a scheduling decision could depend on has changed
        self.started = False  # an attempt has started: times that count from its start are known now
        self.actions: list[Action] = []
        self._jobs: dict[int, Job] = {}
        self._attempts: dict[tuple[int, int], Attempt] = {}  # by their keys
        self._environments: dict[str, Environment] = {}
        self._story: list[StoryLine | StoryCopy] = []
        self._reservations: dict[str, Reservation] = {}
        self._first_id = state.next_job_id
        self.ended: list[Job] = []  # jobs that became final in this turn and whose dependents are to be told
        self.names_left: set[Name] = set()  # names that have one unfinished job fewer, likewise

    # ---- changing -------------------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        """Take in a job that has just been submitted, or an ended one recalled from the store."""
        self.state.arrays.take_in(job)
        if job.state.final:
            self.state.ended.add(job.id)
        self.state.names.put(None, job)
        if job.spec.time_limit is not None and job.state.live:
            self.state.timed.add(job.id)
        self.view.put_job(job, eligible(self.view, job, self.now))

    def recall(self, jobs: Iterable[Job]) -> None:
        """Take in ended jobs that a request names; they are let go again when nobody needs them.

        What the store told may be older than what has happened since: a row whose elements are here already is not.
        """
        for job in jobs:
            if job.id not in self.state.jobs and not self.state.arrays.overlaps(self.state.jobs, job):
                self.add_job(job)

    def forget_job(self, job: Job) -> None:
        """Let go of an ended job; the store keeps it."""
        self.state.ended.discard(job.id)
        self.view.drop_job(job.id)
        self.state.arrays.let_go(job)

    def put_job(self, job: Job, **changes: Any) -> Job:
        """Replace fields of a job (or add a new one as it is) and note it for the commit."""
        state, view = self.state, self.view
        old = view.jobs.get(job.id)
        new = changed(job, changes) if changes else job
        if old is not None and old.state is not new.state:
            self._move(old, new)
        if state.names.known is not None and (name := state.names.put(old, new)) is not None:
            self.names_left.add(name)
        ready = new.state is JobState.PENDING and eligible(view, new, self.now)
        if ready and new.eligible_at is None:
            new = evolve(new, eligible_at=self.now.wall)
        if new.earmark and not ready:
            new = evolve(new, earmark=())  # who waits for something else claims no devices meanwhile
        if new.array is not None:
            state.arrays.put(old, new)
        spec = new.spec
        if spec.time_limit is not None or spec.begin is not None or (old is not None and old.spec is not spec):
            self._track_times(new)
        view.put_job(new, ready)
        self._jobs[new.id] = new
        if not self.dirty and (old is None or not _just_goes_on(old, new)):
            self.dirty = True
        return new

    def put_attempt(self, attempt: Attempt, **changes: Any) -> Attempt:
        new = changed(attempt, changes) if changes else attempt
        self.view.put_attempt(new)
        self._attempts[new.job_id, new.number] = new
        if new.outcome is not None:
            self.dirty = True
        return new

    def overdue(self, attempt: Attempt) -> None:
        """The attempt ended long ago and still has not left its devices: nobody should wait for them."""
        if attempt.key not in self.view.overdue:
            self.view.overdue.add(attempt.key)
            self.dirty = True

    def put_device(self, device: Device) -> None:
        old = self.view.slots.get(device.uuid)
        if old is None or old.device != device:
            self.view.put_device(device)
            self.dirty = True

    def put_reservation(self, reservation: Reservation) -> None:
        """Take in a new or changed reservation; one that is over is kept by the store only."""
        self.view.put_reservation(reservation)
        self._reservations[reservation.name] = reservation
        self.dirty = True

    def put_environment(self, digest: str, environment: Environment) -> None:
        if digest:
            self._environments[digest] = environment

    def tell(self, job: Job, kind: str, text: str, by: str = "") -> None:
        """Add a line to the job's story, if anybody reads it."""
        if self.state.story:
            self._story.append(StoryLine(job.id, job.attempt, self.now.wall, kind, text, by))

    def copy_story(self, job_id: int, source: int) -> None:
        """A row begins with what was told of the row that its elements were in."""
        if self.state.story:
            self._story.append(StoryCopy(job_id, source))

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def take_ids(self, count: int) -> int:
        first = self.state.next_job_id
        self.state.next_job_id += count
        return first

    def changes(self) -> Changes:
        next_id = self.state.next_job_id
        return Changes(
            tuple(self._jobs.values()),
            tuple(self._attempts.values()),
            tuple(self._environments.items()) if self._environments else (),
            tuple(self._story) if self._story else (),
            next_id if next_id != self._first_id else None,
            self.view.ledger.changed(),
            tuple(self._reservations.values()) if self._reservations else (),
        )

    def _move(self, old: Job, new: Job) -> None:
        """The job comes into another state."""
        if new.state not in LEGAL_MOVES[old.state]:
            raise IllegalMove(f"job {new.key}: {old.state} → {new.state} is not a legal move; was {old}, is {new}")
        if old.state.final:
            self.state.ended.discard(new.id)
        if not new.state.final:
            return
        self.ended.append(new)
        self.state.ended.add(new.id)
        past = taught(new)
        if past is not None:
            self.view.durations.learn(past)

    def _track_times(self, job: Job) -> None:
        state, begin = self.state, job.spec.begin
        if job.spec.time_limit is not None and job.state.live:
            state.timed.add(job.id)
        else:
            state.timed.discard(job.id)
        if begin is None or begin <= self.now.wall or job.state is not JobState.PENDING or job.spec.cron:
            state.waiting_for_time.discard(job.id)
        else:
            state.waiting_for_time.add(job.id)


def eligible(view: View, job: Job, now: Instant) -> bool:
    """The job waits for nothing but devices (and its array's limit)."""
    spec = job.spec
    return (
        job.state is JobState.PENDING
        and job.hold is None
        and spec.cron is None
        and job.dependency_met
        and not job.dependency_failed
        and (spec.begin is None or spec.begin <= now.wall)
        and _partition_allows(view.rules, spec)
        and (not spec.request.reservation or _reservation_open(view, spec.request.reservation, now))
        and not (view.in_use.active and forbidden(view.in_use.rules, job))
    )


def _just_goes_on(old: Job, new: Job) -> bool:
    """The job ran and runs, on the same devices and with the same rank: no decision depends on the difference."""
    if not (old.state.live and new.state.live):
        return False
    return old.stop == new.stop and (old.spec is new.spec or old.spec == new.spec)


def _partition_allows(rules: Rules, spec: JobSpec) -> bool:
    partition = rules.partitions.get(spec.request.partition)
    if partition is None:
        return False
    return partition.max_time is None or (spec.time_limit is not None and spec.time_limit <= partition.max_time)


def _reservation_open(view: View, name: str, now: Instant) -> bool:
    return name in view.reservations and view.reservations[name].active(now.wall)


def describe_devices(state: State, shares: tuple[Share, ...]) -> str:
    """`device 2`, `devices 0,1`, or `no device`, as the story and the answers say it."""
    if not shares:
        return "no device (CPU only)"
    slots = state.view.slots
    indexes = sorted([slots[share.uuid].device.index for share in shares if share.uuid in slots])
    return f"device{'s' if len(indexes) > 1 else ''} {','.join(map(str, indexes))}"
