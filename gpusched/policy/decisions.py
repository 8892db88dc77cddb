"""What a policy can decide. The engine carries out each decision before it asks for the next."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.model.evolve import swift
from gpusched.model.job import Attempt, Share
from gpusched.policy.preempt import Plan


@swift
@dataclass(frozen=True, slots=True)
class Start:
    job_id: int
    devices: tuple[Share, ...]
    past: int | None = None  # the waiting job that this start goes past, where that is counted


@dataclass(frozen=True, slots=True)
class Preempt:
    """Promise the devices of the plan to the job, and ask the plan's victims to leave."""

    job_id: int
    plan: Plan
    past: int | None = None  # the waiting job that this plan goes past, where that is counted


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask these to leave for a job that ranks above them; who gets which device is told separately."""

    victims: tuple[Attempt, ...]
    job_id: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The promise of devices to this job cannot be kept."""

    job_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Widen:
    """An elastic job that starts in this cycle gets these devices instead of its least number."""

    job_id: int
    devices: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Resize:
    """Ask a running elastic job to save and go on with these devices. seconds_left: what it still needs as it is."""

    job_id: int
    keeps: tuple[str, ...]
    for_job: int | None = None
    seconds_left: float | None = None


Decision = Start | Preempt | Evict | Withdraw | Widen | Resize
