"""What can happen, in the past tense. The engine accepts nothing else.

Requests by people carry a Caller; facts about an attempt carry its AttemptKey, and late ones are dropped.
`recalled` are ended jobs that a request names and that the engine no longer keeps: the shell reads them from the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpusched.model.device import Occupancy
from gpusched.model.evolve import swift
from gpusched.model.job import AttemptKey, Caller, Environment, Job, JobSpec
from gpusched.model.reservation import Repeat
from gpusched.model.state import Outcome, Saved

# ---- requests by people ---------------------------------------------------------------------------------------


@swift
@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """Reply: Submitted."""

    spec: JobSpec
    caller: Caller
    environment: Environment = field(default_factory=dict)
    array: str | None = None  # the text of --array
    hold: bool = False
    next_run: float | None = None  # for --cron: wall clock of the first run
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Reply, as for all the requests below: tuple[Answer, ...], one per job that the keys name."""

    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldRequested:
    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class RequeueRequested:
    """Back to the queue: a running job saves and waits again, an ended one runs again."""

    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class PreemptRequested:
    """Give the devices back, keep my place."""

    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """Save now and go on. Refused for a job that does not watch for requests."""

    keys: tuple[str, ...]
    caller: Caller
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateRequested:
    """Change a pending job's spec (or a running one's time limit, QoS, comment, name). Only what is given changes."""

    keys: tuple[str, ...]
    caller: Caller
    name: str | None = None
    qos: str | None = None
    comment: str | None = None
    expected: float | None = None
    nice: int | None = None
    time_limit: float | None = None  # seconds; 0 removes the limit
    begin: float | None = None  # wall clock; 0: now
    gpus: int | None = None
    gpus_max: int | None = None  # 0: not elastic
    gpu_counts: tuple[int, ...] | None = None  # (): any number from gpus to gpus_max
    gpu_mem_mib: int | None = None  # 0 removes it
    gpu_type: str | None = None  # "" removes it
    partition: str | None = None
    dependency: str | None = None  # "" removes it
    requeue: bool | None = None
    reservation: str | None = None  # "" removes it
    recalled: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class ReservationRequested:
    """An administrator keeps devices for some. Reply: tuple[Answer, ...], one whose key is the reservation's name."""

    name: str
    caller: Caller
    start: float  # wall clock
    duration: float  # seconds
    devices: tuple[str, ...] = ()  # indexes or UUIDs as typed; empty: `count` of them are chosen
    count: int = 0
    gpu_type: str | None = None  # glob on the name, for those that are chosen
    users: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    repeat: Repeat | None = None
    zone: str = ""  # time zone of the calendar: see Reservation
    comment: str = ""


@dataclass(frozen=True, slots=True)
class UnreserveRequested:
    """Take reservations back. Reply: tuple[Answer, ...], one for each name."""

    names: tuple[str, ...]
    caller: Caller


# ---- facts about attempts -------------------------------------------------------------------------------------


@swift
@dataclass(frozen=True, slots=True)
class AttemptStarted:
    attempt: AttemptKey
    pid: int
    watching: bool = False  # it polls for requests already


@dataclass(frozen=True, slots=True)
class AttemptWatching:
    """The job has announced that it polls for requests."""

    attempt: AttemptKey


@dataclass(frozen=True, slots=True)
class AttemptSaved:
    """The job has acknowledged a published checkpoint."""

    attempt: AttemptKey
    saved: Saved


@dataclass(frozen=True, slots=True)
class AttemptProgressed:
    """What the job has told of its progress. `at` is its own wall clock; `total`: steps in all, if it knows."""

    attempt: AttemptKey
    step: float
    at: float
    total: float | None = None


@dataclass(frozen=True, slots=True)
class ScriptChanged:
    """The attempt runs another script than the one that was submitted. sha256 None: it cannot be read any more."""

    attempt: AttemptKey
    sha256: str | None


@swift
@dataclass(frozen=True, slots=True)
class AttemptExited:
    """The attempt's processes are gone and its end is known (or known to be unknown: LOST).

    clear: the devices which one direct reading at the exit showed free of it. Those that are not listed stay
    allocated until a later sample shows them free.
    """

    attempt: AttemptKey
    outcome: Outcome
    clear: tuple[str, ...] = ()


# ---- facts about devices, time and the service ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DevicesSampled:
    """All devices as read at one moment. With `error` nothing is known: devices go stale, running jobs go on."""

    devices: tuple[Occupancy, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Woke:
    """A time the engine asked to be woken at has come (a deadline, a begin time), or it may have."""


@dataclass(frozen=True, slots=True)
class CronFired:
    """The run of a --cron job that was due at `due`; the next is due at `next_run` (wall clock)."""

    job_id: int
    due: float
    next_run: float | None


@dataclass(frozen=True, slots=True)
class ServiceStarted:
    """The daemon runs again and has told what became of every attempt: what was being asked is asked again."""


@dataclass(frozen=True, slots=True)
class ServiceStopping:
    """The service is about to end. `ask_jobs`: running jobs save and go back to the queue; else they go on alone."""

    caller: Caller
    ask_jobs: bool = False


UserRequest = (
    JobSubmitted
    | CancelRequested
    | HoldRequested
    | ReleaseRequested
    | RequeueRequested
    | PreemptRequested
    | CheckpointRequested
    | UpdateRequested
    | ReservationRequested
    | UnreserveRequested
    | ServiceStopping
)
Event = (
    UserRequest
    | AttemptStarted
    | AttemptWatching
    | AttemptSaved
    | AttemptProgressed
    | ScriptChanged
    | AttemptExited
    | DevicesSampled
    | Woke
    | ServiceStarted
    | CronFired
)
