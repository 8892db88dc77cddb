"""The daemon's ports: what the shell needs from the world. Only daemon/app.py picks the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpusched.model.actions import Asked
from gpusched.model.changes import Changes, Snapshot, StoryLine
from gpusched.model.clock import Instant
from gpusched.model.device import ProbeSample
from gpusched.model.job import Attempt, AttemptKey, Environment, Job
from gpusched.model.reservation import Reservation
from gpusched.model.state import Outcome, Saved


class Clock(Protocol):
    def now(self) -> Instant: ...


class StoreError(Exception):
    """A commit or a read did not happen. `hint` says what to do; nothing of the batch was recorded."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Which ended jobs. None: any. Times are wall clock, on the end of the job."""

    users: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # globs
    ids: tuple[int, ...] = ()
    since: float | None = None
    until: float | None = None
    limit: int = 1000


class Store(Protocol):
    """Durable state. One thread writes; every method may block and is called off the loop."""

    def load(self) -> Snapshot:
        """Everything the engine needs to go on."""

    def commit(self, changes: Sequence[Changes]) -> None:
        """Make all of it durable in one transaction, or raise StoreError with nothing of it recorded."""

    def environment(self, digest: str) -> Environment:
        """The environment of a submit. Raises KeyError."""

    def job(self, job_id: int) -> Job | None:
        """The job; of an array element without a row of its own the row into which it is folded."""

    def element(self, array_id: int, index: int) -> Job | None:
        """The row in which the element is: its own, or the one into which it is folded."""

    def array(self, array_id: int, most: int | None = None) -> tuple[Job, ...]:
        """The rows of an array, in the order of their first elements. Those with `folded` are several elements.

        most: of an array with more rows, those that did not complete, and at most so many of them.
        """

    def attempts(self, job_id: int) -> tuple[Attempt, ...]: ...

    def story(self, job_id: int) -> tuple[StoryLine, ...]: ...

    def history(self, query: HistoryQuery) -> tuple[tuple[Job, tuple[Attempt, ...]], ...]:
        """Ended jobs, the latest end first."""

    def recent_keys(self, uid: int, limit: int) -> tuple[str, ...]:
        """Keys of the latest submits of a user, newest first; an array counts once."""

    def reservations(self) -> tuple[Reservation, ...]:
        """All reservations by name, those that are over too until they are forgotten."""

    def trim(self, ended_before: float) -> int:
        """Forget jobs and reservations that ended before this wall time. Returns how many jobs."""

    def check(self) -> None:
        """Prove that a write can become durable now. Raises StoreError."""

    def close(self) -> None: ...


class DeviceProbe(Protocol):
    """Reads the machine's devices. Never raises and never blocks past its own deadline: trouble is in the sample."""

    async def sample(self) -> ProbeSample:
        """One reading of every device."""

    async def read(self, uuids: Sequence[str]) -> ProbeSample:
        """One fresh reading of these devices only, as directly as can be."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """Everything a supervisor needs to run one attempt."""

    attempt: AttemptKey
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    output: str  # absolute path, appended to
    error: str | None  # absolute path; None: the same as output
    job_dir: str
    umask: int = 0o022
    banner: str = ""  # the divider line written to the output before each attempt; empty: none


class LaunchError(Exception):
    """The supervisor could not be started (no fork possible, …). Nothing runs."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the control directory of an attempt shows now."""

    claimed: bool = False  # a supervisor has taken the attempt
    revoked: bool = False  # the daemon has taken it back before any supervisor did
    alive: bool = False  # a supervisor holds the lock
    boot_id: str | None = None  # the boot in which it was claimed
    supervisor_pid: int | None = None
    mark: str | None = None  # the value of rundir.ENV_MARK in the environment of its processes
    pid: int | None = None  # the job's main process; None: not exec'd yet
    watching: bool = False
    saved: Saved | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)  # the last progress line
    outcome: Outcome | None = None  # from exit.json


class Launcher(Protocol):
    """Starts, watches and stops attempts. An attempt can be started once: a second start is a no-op."""

    async def start(self, order: LaunchOrder) -> None:
        """Have a supervisor started for the attempt. Raises LaunchError when that is impossible."""

    def observe(self, attempt: AttemptKey) -> Observation:
        """Read the attempt's control directory. Works for attempts started by an earlier daemon."""

    def attempts(self) -> tuple[AttemptKey, ...]:
        """All attempts that have a control directory."""

    def revoke(self, attempt: AttemptKey) -> bool:
        """Make sure that a start which has not happened never will. False: too late, a supervisor has claimed it."""

    async def ended(self, attempt: AttemptKey) -> None:
        """Wait until the attempt's supervisor is gone (returns at once if there is none)."""

    def ask(
        self, attempt: AttemptKey, what: Asked, *, cause: str, deadline: float | None, signal: int
    ) -> None:
        """Hand a request to the supervisor. Asking the same again is harmless."""

    def kill(self, attempt: AttemptKey) -> None:
        """Have the supervisor kill the whole tree."""

    def kill_remains(self, attempt: AttemptKey) -> int:
        """Kill processes of an attempt whose supervisor is gone. Returns how many were found."""

    def forget(self, attempt: AttemptKey) -> None:
        """Remove the control directory."""

    async def close(self) -> None:
        """Let go; attempts live on."""
