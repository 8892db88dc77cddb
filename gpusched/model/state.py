"""The states of a job, why it is being stopped, how an attempt ended, and the table of legal moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gpusched.model.evolve import swift


class JobState(StrEnum):
    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    LOST = "LOST"

    final: bool  # the job is over; only a person can bring it back
    live: bool  # an attempt of the job may have processes

    __hash__ = str.__hash__  # as good as that of Enum, and asked for all the time

    @property
    def code(self) -> str:
        """The short code of Slurm's squeue (LO is ours)."""
        return _CODES[self]


LIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})
FINAL = frozenset(
    {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT, JobState.PREEMPTED, JobState.LOST}
)
for _state in JobState:
    _state.final, _state.live = _state in FINAL, _state in LIVE
_CODES = {
    JobState.PENDING: "PD",
    JobState.STARTING: "CF",
    JobState.RUNNING: "R",
    JobState.STOPPING: "CG",
    JobState.COMPLETED: "CD",
    JobState.FAILED: "F",
    JobState.CANCELLED: "CA",
    JobState.TIMEOUT: "TO",
    JobState.PREEMPTED: "PR",
    JobState.LOST: "LO",
}

# The one table of legal moves; docs/architecture.md draws its diagram from it. A final job goes back to PENDING
# only when a person says `requeue`.
_P, _S, _R, _G = JobState.PENDING, JobState.STARTING, JobState.RUNNING, JobState.STOPPING
LEGAL_MOVES: dict[JobState, frozenset[JobState]] = {
    _P: frozenset({_S, JobState.CANCELLED}),
    _S: frozenset({_R, _G, _P, *FINAL} - {JobState.PREEMPTED, JobState.TIMEOUT}),
    _R: frozenset({_G, _P, JobState.COMPLETED, JobState.FAILED, JobState.LOST}),
    _G: frozenset({_P, *FINAL}),
    **{state: frozenset({_P}) for state in FINAL},
}


def diagram() -> str:
    """The table of legal moves as a Mermaid state diagram; docs/architecture.md shows it and a test compares them."""
    lines = ["stateDiagram-v2", "    [*] --> PENDING"]
    for state in JobState:
        said = " : requeue" if state.final else ""
        lines += [f"    {state} --> {after}{said}" for after in JobState if after in LEGAL_MOVES[state]]
    return "\n".join(lines)


class StopKind(StrEnum):
    """Why a live attempt is being stopped."""

    PREEMPT = "preempt"  # for a more important job
    YIELD = "yield"  # the owner said `preempt`: give the device back, keep my place
    REQUEUE = "requeue"  # the owner said `requeue`
    RESIZE = "resize"  # an elastic job goes on with another number of devices, or any job on others
    CANCEL = "cancel"
    TIME_LIMIT = "time-limit"
    DEVICE_FAILED = "device-failed"
    DRAIN = "drain"
    RESERVATION = "reservation"  # a reservation of its devices for others has begun
    SHUTDOWN = "shutdown"

    @property
    def resumes(self) -> bool:
        """After this stop the job goes back to the queue (if it may be requeued)."""
        return self not in (StopKind.CANCEL, StopKind.TIME_LIMIT)


@swift
@dataclass(frozen=True, slots=True)
class Stop:
    """A stop in progress: its cause and the end of its grace period (boot clock)."""

    kind: StopKind
    deadline: float
    for_job: int | None = None
    by: str = ""
    to_cancel: bool = False  # preempt mode `cancel`: the victim does not come back
    kills: int = 0  # how often its tree was killed already; after the first, `deadline` is that of the next kill
    reservation: str = ""  # for RESERVATION: its name
    keeps: tuple[str, ...] = ()  # RESIZE: the devices with which it goes on; nobody else may take them meanwhile
    was: int = 0  # RESIZE: how many devices it has had
    asked: float | None = field(default=None, compare=False)  # boot clock: when the job was first asked to leave

    def phrase(self) -> str:
        """The cause in words, as jobs and people read it."""
        match self.kind:
            case StopKind.PREEMPT:
                return f"preempted for job {self.for_job}"
            case StopKind.YIELD:
                return f"asked by {self.by} to give its devices back"
            case StopKind.REQUEUE:
                return f"requeued by {self.by}"
            case StopKind.RESIZE:
                return self._resize_phrase()
            case StopKind.CANCEL:
                return f"cancelled by {self.by}"
            case StopKind.TIME_LIMIT:
                return "time limit reached"
            case StopKind.DEVICE_FAILED:
                return "a device failed"
            case StopKind.DRAIN:
                return "its device is being drained"
            case StopKind.RESERVATION:
                return f"its devices are reserved from now on (reservation {self.reservation})"
            case StopKind.SHUTDOWN:
                return "the service is shutting down"

    def _resize_phrase(self) -> str:
        will = len(self.keeps)
        if will > self.was:
            return f"grows from {self.was} to {will} devices"
        if will == self.was:
            whom = f" to job {self.for_job}" if self.for_job is not None else ""
            return f"goes on elsewhere and leaves its devices{whom}"
        whom = f" to job {self.for_job}" if self.for_job is not None else " back"
        return f"gives {self.was - will} of its {self.was} devices{whom}"


class OutcomeKind(StrEnum):
    """How one attempt ended, as observed; the engine derives the job's state from it."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    LAUNCH_FAILED = "launch-failed"  # exec, chdir or opening the output failed: errno and text say why
    LOST = "lost"  # it ended and nobody saw how: never success
    NEVER_STARTED = "never-started"  # the start was revoked before the supervisor claimed it


@dataclass(frozen=True, slots=True)
class Saved:
    """A job's acknowledgement that a checkpoint is published and durable."""

    checkpoint: str
    step: int | None = None
    at: float | None = None  # wall clock


@swift
@dataclass(frozen=True, slots=True)
class Outcome:
    kind: OutcomeKind
    code: int | None = None  # exit code, when EXITED
    signal: int | None = None  # number, when SIGNALLED
    errno: int | None = None  # when LAUNCH_FAILED
    text: str = ""  # a sentence for LAUNCH_FAILED and LOST
    saved: Saved | None = None  # acknowledged by this attempt
    killed: bool = False  # the tree was killed at the end of its grace period
    max_rss_mib: int | None = None
    cpu_s: float | None = None
    # When its supervisor saw it end, on both clocks. Two reports of one end are equal whatever they say of it.
    ended_wall: float | None = field(default=None, compare=False)
    ended_boot: float | None = field(default=None, compare=False)
