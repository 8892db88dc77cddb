"""What the shell is told to do, in the imperative, after the commit. Each is safe to repeat after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpusched.model.evolve import swift
from gpusched.model.job import AttemptKey, Job, Share


@swift
@dataclass(frozen=True, slots=True)
class Launch:
    """Start this attempt. If it already exists, this is already done."""

    attempt: AttemptKey
    job: Job
    devices: tuple[Share, ...]
    grace: float = 60.0  # seconds that the job will get when it is asked to leave


class Asked(StrEnum):
    SAVE = "save"  # save now and go on
    STOP = "stop"  # save and leave


@swift
@dataclass(frozen=True, slots=True)
class Ask:
    """Write the job's `request`, and send its signal unless it is watching."""

    attempt: AttemptKey
    what: Asked
    cause: str  # in words
    deadline: float | None  # boot clock; after it the tree is killed
    signal: int  # the number to send to the main process of a job that does not watch


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the attempt's whole process tree at once."""

    attempt: AttemptKey


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Read these devices soon: an ended attempt was not seen to have left them."""

    uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The attempt's end is recorded and its devices are free: its control directory may go."""

    attempt: AttemptKey


Action = Launch | Ask | Kill | LookAgain | Forget
