"""A job (what was submitted), its attempts (executions) and what it asks for."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from gpusched.model import spans
from gpusched.model.dependency import Dependency
from gpusched.model.evolve import Hashed, swift
from gpusched.model.gpu_count import counts_text
from gpusched.model.spans import Span, Spans
from gpusched.model.state import JobState, Outcome, Saved, Stop


class AttemptKey(NamedTuple):
    """One execution of one job. Numbers grow and are never reused; every message from the world carries the key."""

    job_id: int
    number: int

    def __str__(self) -> str:
        return f"{self.job_id}-{self.number}"


_new_key = tuple.__new__  # AttemptKey(…) without the call in between


@swift
@dataclass(frozen=True, slots=True)
class Owner:
    """Who submitted a job, as the kernel told (SO_PEERCRED)."""

    uid: int
    gid: int
    user: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for something; `admin` may touch everybody's jobs."""

    uid: int
    gid: int
    user: str
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Request(Hashed):
    """What an attempt needs. Jobs with equal requests are interchangeable for placement."""

    __hash__ = Hashed.__hash__

    gpus: int = 1
    gpu_mem_mib: int | None = None  # per device: a minimum on an exclusive one, the share with `shared`
    shared: bool = False
    gpu_type: str | None = None  # glob on the device's name
    partition: str = "default"
    gpus_max: int | None = None  # elastic (--gpus 2-8): it runs on any number from `gpus` to this
    reservation: str = ""  # only on the devices of this reservation (--reservation)
    gpu_counts: tuple[int, ...] = ()  # elastic, on these numbers only (--gpus 1,2,4,8), ascending; (): on all of them

    def _key(self) -> tuple[object, ...]:
        return self.gpus, self.gpu_mem_mib, self.shared, self.gpu_type, self.partition, self.gpus_max, self.reservation

    @property
    def elastic(self) -> bool:
        return self.gpus_max is not None

    @property
    def most(self) -> int:
        """The most devices that it can use."""
        return self.gpus if self.gpus_max is None else self.gpus_max

    def within(self, devices: int) -> int:
        """The largest number of devices that it can run on, of at most so many; 0: not even its least number."""
        if devices < self.gpus:
            return 0
        if not self.gpu_counts:
            return min(devices, self.most)
        return max((count for count in self.gpu_counts if count <= devices), default=0)

    @property
    def counts_text(self) -> str:
        """How many devices it asks for: `2`, `2-8`, `1,2,4,8`."""
        return counts_text(self.gpus, self.gpus_max, self.gpu_counts)


@dataclass(frozen=True, slots=True)
class ArrayElement:
    """Which element of which array. The array's id is the job id of its first element."""

    array_id: int
    index: int
    count: int
    first: int
    last: int
    step: int
    limit: int  # %N: at most so many at once; 0: no limit


@dataclass(frozen=True, slots=True)
class Source:
    """What exactly was submitted, recorded so that the job's story can name what changed since."""

    script: str | None = None
    script_sha256: str | None = None
    git_commit: str | None = None
    git_dirty: bool = False


@swift
@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the user asked for; changes only through `update`."""

    command: tuple[str, ...]
    cwd: str
    name: str = "job"
    request: Request = Request()
    qos: str = "normal"
    account: str = ""
    env_digest: str = ""  # the environment itself is kept by the store, once per digest
    time_limit: float | None = None  # seconds, per attempt
    expected: float | None = None  # seconds of running in all that the user expects: for planning, never enforced
    nice: int = 0  # lowers the priority (raises it, if negative: administrators only)
    warn: float = 0.0  # seconds before the time limit at which the job is asked to save and leave
    begin: float | None = None  # wall clock: not before
    cron: str | None = None  # five fields; this job is a template that submits copies
    dependency: Dependency | None = None
    cancel_on_bad_dependency: bool = True
    output: str = "gpusched-%j.out"  # %A_%a for arrays; pattern of filename_pattern
    error: str | None = None  # None: same file as output
    requeue: bool = True
    max_requeues: int | None = None  # None: the configured limit
    grace: float | None = None  # seconds; None: the QoS's
    signal: int = int(signal.SIGTERM)
    checkpoint_dir: str | None = None
    umask: int = 0o022
    comment: str = ""
    source: Source = Source()


@dataclass(frozen=True, slots=True)
class Speed:
    """How quick a job was on so many devices: steps per second by its own progress reports."""

    gpus: int
    rate: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What an attempt has told of its progress: the first report and the latest. Times are its own, wall clock."""

    first_step: float
    first_at: float
    step: float
    at: float
    total: float | None = None  # steps in all

    @property
    def rate(self) -> float | None:
        """Steps per second between the two."""
        if self.at <= self.first_at or self.step <= self.first_step:
            return None
        return (self.step - self.first_step) / (self.at - self.first_at)


class HoldKind(StrEnum):
    USER = "user"
    ADMIN = "admin"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Hold:
    kind: HoldKind
    reason: str = ""


@swift
@dataclass(frozen=True, slots=True)
class Job:
    """The state of one job. Changed only by the engine, with dataclasses.replace."""

    id: int
    owner: Owner
    spec: JobSpec
    state: JobState
    submitted_at: float  # wall clock
    array: ArrayElement | None = None
    folded: Spans = ()  # elements behind this one that have not left the queue: this row stands for them, too
    cron_parent: int | None = None  # the --cron template that submitted this job
    hold: Hold | None = None
    stop: Stop | None = None  # only while STOPPING
    attempt: int = 0  # number of the latest attempt; 0: none yet
    restarts: int = 0  # attempts that ran and were followed by another
    failed_starts: int = 0  # consecutive starts that never became a process
    losses: int = 0  # consecutive attempts that were lost and had saved nothing new
    unasked_requeues: int = 0  # consecutive exits with 85 that nobody asked for and that saved nothing new
    saved: Saved | None = None  # the newest acknowledged checkpoint
    earmark: tuple[str, ...] = ()  # devices that its victims are leaving for this job
    bypassed: int = 0  # later jobs that started on devices this one was waiting for
    yielding: bool = False  # others may have its devices first, once
    patient: bool = False  # it gave its devices back: it asks nobody to leave until it has run again
    dependency_met: bool = True
    dependency_failed: bool = False  # can never be met
    ran: float = 0.0  # seconds that its ended attempts ran
    gpu_seconds: float = 0.0  # devices × seconds that its ended attempts ran: attained service
    preemptions: int = 0  # how often it has left for other jobs and waits, or waited, to go on
    lost: float = 0.0  # seconds of running that its preemptions cost it, as far as is known
    cost: float | None = None  # seconds that moving it costs, measured at its own restarts
    leave: float | None = None  # of these, what leaving took the last time; only until it is back and has loaded
    resizes: int = 0  # how often it has gone on with another number of devices; such restarts count in `restarts` too
    limit_used: float = 0.0  # seconds of its time limit that attempts have used which only a resize has ended
    speeds: tuple[Speed, ...] = ()  # elastic jobs: the latest measurement on each number of devices, ascending
    requeued_at: float | None = None  # wall clock: when it last came back to the queue
    eligible_at: float | None = None  # wall clock: when it could first have been started; the start of its wait
    started_at: float | None = None  # wall clock, of the latest attempt
    ended_at: float | None = None
    outcome: Outcome | None = None  # of the latest ended attempt
    ended_because: str = ""  # a sentence, for final states

    @property
    def key(self) -> str:
        """How people name it: 42, 42_3 for an array element, 42_[3-99%4] for elements that wait as one row."""
        if self.array is None:
            return str(self.id)
        if self.folded:
            limit = f"%{self.array.limit}" if self.array.limit else ""
            return f"{self.array.array_id}_[{spans.text(self.elements)}{limit}]"
        return f"{self.array.array_id}_{self.array.index}"

    @property
    def elements(self) -> Spans:
        """The elements of its array that it stands for; nothing for a job that is no array."""
        if self.array is None:
            return ()
        return (Span(self.id - self.array.array_id, self.array.index), *self.folded)

    @property
    def size(self) -> int:
        """How many jobs it stands for: 1, or more for elements of an array that wait as one row."""
        return 1 + spans.size(self.folded) if self.folded else 1

    @property
    def account(self) -> str:
        """Who is charged: the account it was submitted to, else its user."""
        return self.spec.account or self.owner.user

    @property
    def attempt_key(self) -> AttemptKey:
        return AttemptKey(self.id, self.attempt)

    @property
    def limit_left(self) -> float | None:
        """Seconds that the present attempt may run in all; None: no limit."""
        return None if self.spec.time_limit is None else max(0.0, self.spec.time_limit - self.limit_used)

    @property
    def counted_restarts(self) -> int:
        """Those that --max-requeues counts: not the ones that only changed an elastic job's number of devices."""
        return self.restarts - self.resizes


@dataclass(frozen=True, slots=True)
class Share:
    """Part of an allocation: one device, whole (`mem_mib` None) or a share of its memory."""

    uuid: str
    mem_mib: int | None = None


@swift
@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution. It holds its devices until `released`: exit confirmed and the devices seen free."""

    job_id: int
    number: int
    devices: tuple[Share, ...]
    boot_id: str
    created: float  # boot clock: committed as STARTING
    created_at: float  # wall clock
    started: float | None = None  # boot clock: exec'd
    started_at: float | None = None
    ended: float | None = None
    ended_at: float | None = None
    pid: int | None = None  # of the job's main process
    watching: bool = False  # the job polls for requests
    saved: Saved | None = None
    pace: Pace | None = None  # elastic jobs: what it has told of its progress
    outcome: Outcome | None = None
    stop: Stop | None = None  # the stop that was in progress when it ended
    cleared: tuple[str, ...] = ()  # after the end: devices already seen free of it
    released: bool = False
    charge: float | None = None  # devices that count for fair share, parts of shared ones; None: all of them

    @property
    def key(self) -> AttemptKey:
        return _new_key(AttemptKey, (self.job_id, self.number))

    @property
    def held(self) -> tuple[Share, ...]:
        """What it still holds: everything while it lives, then whatever was not yet seen free."""
        if self.released:
            return ()
        return tuple(s for s in self.devices if s.uuid not in self.cleared) if self.cleared else self.devices

    @property
    def live(self) -> bool:
        return self.outcome is None

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple([share.uuid for share in self.devices])


Environment = Mapping[str, str]
