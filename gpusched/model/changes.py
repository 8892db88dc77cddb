"""What one step of the engine gives to the shell: rows to commit, the story, answers and actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpusched.model.actions import Action
from gpusched.model.errors import GpuschedError
from gpusched.model.evolve import swift
from gpusched.model.job import Attempt, Environment, Job
from gpusched.model.past import Past
from gpusched.model.reservation import Reservation


@swift
@dataclass(frozen=True, slots=True)
class StoryLine:
    """One line of a job's story. `kind` is a stable word, `text` the sentence people read."""

    job_id: int
    attempt: int  # 0: before the first attempt
    at: float  # wall clock
    kind: str
    text: str
    by: str = ""  # user who asked, where somebody did


@dataclass(frozen=True, slots=True)
class StoryCopy:
    """Elements of an array leave the row they waited in: what was told of that row up to here was told of them, too."""

    job_id: int  # the row that begins
    source: int  # the row they were in


@swift
@dataclass(frozen=True, slots=True)
class AccountUsage:
    """What the ended attempts of one account have used, decayed to the moment `at` (wall clock)."""

    account: str
    device_seconds: float
    at: float


@swift
@dataclass(frozen=True, slots=True)
class Changes:
    """Everything of one step that must become durable together. Later rows of the same id replace earlier ones."""

    jobs: tuple[Job, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    environments: tuple[tuple[str, Environment], ...] = ()  # (digest, environment): kept once per digest
    story: tuple[StoryLine | StoryCopy, ...] = ()  # in the order in which it is written
    next_job_id: int | None = None  # ids are never reused, not even after the history was trimmed
    usage: tuple[AccountUsage, ...] = ()  # of the accounts whose attempts have ended
    reservations: tuple[Reservation, ...] = ()

    def __bool__(self) -> bool:
        rows = self.jobs or self.attempts or self.environments or self.story or self.usage or self.reservations
        return bool(rows or self.next_job_id)


@swift
@dataclass(frozen=True, slots=True)
class Submitted:
    """The reply to a submit: `key` names the job, or the whole array."""

    key: str
    job_ids: Sequence[int]  # one after the other; a range, as an array may have a million
    note: str = ""  # how things stand, in a sentence: started on devices …, or why it waits


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a request about one job: a sentence of what was done, or the error."""

    key: str
    done: str = ""
    error: GpuschedError | None = None


Reply = Submitted | tuple[Answer, ...] | GpuschedError | None


@swift
@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of handling a batch of events. Commit `changes`, answer `replies`, then perform `actions`."""

    changes: Changes
    replies: tuple[Reply, ...]  # aligned with the events
    actions: tuple[Action, ...] = ()
    wake_boot: float | None = None  # earliest deadline, boot clock
    wake_wall: float | None = None  # earliest begin time, wall clock


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store gives back at start: enough to rebuild the engine's state."""

    jobs: tuple[Job, ...] = ()  # all that are not final, and final ones that others depend on
    attempts: tuple[Attempt, ...] = ()  # all that are not released
    next_job_id: int = 1
    usage: tuple[AccountUsage, ...] = ()
    reservations: tuple[Reservation, ...] = ()  # all that are not over
    past: tuple[Past, ...] = ()  # what the latest ended jobs teach about durations, the oldest first
