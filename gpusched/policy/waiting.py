"""How waiting jobs are kept: those that are interchangeable for placement in one bucket, in order of their rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpusched.model.job import Job, Request

Rank = Any  # what a policy orders by: any comparable value, smaller first, of one type per policy


class Bucket(NamedTuple):
    """Waiting jobs that are interchangeable for placement: if the first does not fit, none of the others does."""

    yielding: bool
    patient: bool
    overdue: bool  # it has waited longer than the policy's patience
    qos: str
    account: str
    uid: int
    request: Request
    limited_array: int  # array id if the array has a %limit, else 0
    gid: int


@dataclass(slots=True)
class Waiting:
    """The jobs of one bucket by the policy's rank, then id; and by how long they are expected to run."""

    entries: list[tuple[Rank, int]] = field(default_factory=list)
    lengths: list[tuple[float, int]] = field(default_factory=list)  # seconds, for policies that backfill


def waiting_since(job: Job) -> float | None:
    """Wall clock: since when it waits for devices this time."""
    if job.requeued_at is None or job.eligible_at is None:
        return job.eligible_at
    return max(job.requeued_at, job.eligible_at)


def untold(job: Job) -> bool:
    """Nobody has told how long it runs: only predictions can."""
    return job.spec.expected is None and job.spec.time_limit is None
