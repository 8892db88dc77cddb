"""The multifactor priority: who of the waiting jobs of one QoS level goes first, broken down into its factors.

    total = w_age · age + w_fair_share · F + w_size · size − w_nice · nice

after Slurm's priority/multifactor plugin. Age is the time since the job could first have been started, in units of
`age_days`, and has no upper end. So nobody starves: every job gains w_age points in age_days of waiting, all at the
same rate, and what a later job can have ahead is bounded. A job can be passed only by jobs that became eligible at
most

    (w_fair_share + w_size + w_nice · (highest − lowest nice)) / w_age · age_days

after it. With the default weights and without --nice that is 14 days. The QoS level comes before all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Request, Share
from gpusched.model.policy import DAY, PolicyName
from gpusched.model.rules import Rules
from gpusched.policy.view import View
from gpusched.policy.waiting import Rank

NOTICEABLE = 0.01  # part by which all usage must grow within a cycle for every account to be looked at again


@dataclass(frozen=True, slots=True)
class Factor:
    """One addend of the priority: the factor, and what it is worth."""

    value: float
    weight: float

    @property
    def points(self) -> float:
        return self.value * self.weight


@dataclass(frozen=True, slots=True)
class Factors:
    """The priority of one job at one moment. fair_share and size are within 0 and 1; age has no upper end; nice is
    the job's --nice with its sign turned, as it is added."""

    qos: str
    level: int  # the priority of the QoS: it goes before the total
    age: Factor
    fair_share: Factor
    size: Factor
    nice: Factor

    @property
    def total(self) -> float:
        return self.age.points + self.fair_share.points + self.size.points + self.nice.points


def factors(view: View, job: Job, now: Instant) -> Factors:
    """The job's priority now, broken down. A job that waits for something else than devices gains no age."""
    weights = view.rules.policy.weights
    waited = 0.0 if job.eligible_at is None else max(0.0, now.wall - job.eligible_at)
    return Factors(
        job.spec.qos,
        view.priority(job),
        Factor(waited / (weights.age_days * DAY), weights.age),
        Factor(view.ledger.factor(job.account, now.wall), weights.fair_share),
        Factor(size(view, job), weights.size),
        Factor(0.0 - job.spec.nice, weights.nice),
    )


def static(view: View, job: Job) -> float:
    """What stays of the job's priority while it waits, its age expressed by the moment from which it counts.

    For jobs that are eligible, total(now) = static + F(account, now) · w_fair_share + w_age · now / age_days, the last
    being equal for all: jobs of one account keep their order while they wait. It changes with the job's spec and when
    devices join or leave a partition.
    """
    weights = view.rules.policy.weights
    since = job.submitted_at if job.eligible_at is None else job.eligible_at
    large = weights.size * size(view, job) if weights.size else 0.0
    return large - weights.nice * job.spec.nice - weights.age * since / (weights.age_days * DAY)


def size(view: View, job: Job) -> float:
    """The job's devices as a part (0 to 1) of the largest gang that its partition could hold."""
    gpus = job.spec.request.gpus
    if not gpus:
        return 0.0
    most = len(view.suitable(Request(partition=job.spec.request.partition)))
    return min(1.0, gpus / most) if most else 1.0


def charge(view: View, shares: Iterable[Share]) -> float:
    """The devices that an attempt on these is charged for: of a shared one only the part of its memory that it has."""
    devices = 0.0
    for share in shares:
        slot = view.slots.get(share.uuid)
        total = slot.device.total_mib if slot is not None else 0
        devices += 1.0 if share.mem_mib is None or not total else min(1.0, share.mem_mib / total)
    return devices


def charged(attempt: Attempt) -> float:
    """The devices that this attempt is charged for."""
    return float(len(attempt.devices)) if attempt.charge is None else attempt.charge


def rank(view: View, job: Job) -> float:
    """What waiting jobs of one level and one account are ordered by: smaller first."""
    return -static(view, job)


def by_priority(rules: Rules) -> bool:
    """Whether the policy orders the waiting jobs of a level by this priority. Without it, it is only shown."""
    return rules.policy.name in (PolicyName.BACKFILL, PolicyName.FIT_FIRST)


def scheduling_order(view: View, now: Instant) -> Callable[[Job], tuple[int, int, bool, Rank, int]]:
    """The order of the waiting jobs at this moment, whatever the policy: View.order with the accounts' fair shares."""
    if not by_priority(view.rules):
        return view.order
    shift = Shifts(view, now)

    def order(job: Job) -> tuple[int, int, bool, Rank, int]:
        standing, level, patient, rank, job_id = view.order(job)
        return standing, level, patient, rank + shift[job.account] if patient else rank, job_id

    return order


class Shifts:
    """What to add to the rank of each account's jobs at this moment: its fair share, worked out when asked for."""

    def __init__(self, view: View, now: Instant) -> None:
        self._view, self._now = view, now
        self._weight = view.rules.policy.weights.fair_share
        self._known: dict[str, float] = {}
        self._total = view.ledger.total(now.wall)

    def __getitem__(self, account: str) -> float:
        shift = self._known.get(account)
        if shift is None:
            shift = self._known[account] = -self._weight * self._view.ledger.factor(account, self._now.wall)
        return shift

    def renew(self, account: str) -> bool:
        """The account has used more: its shift is worked out anew. True: those of all others too, because they have
        risen noticeably, as they do while little has been used at all."""
        total = self._view.ledger.total(self._now.wall)
        if total <= self._total * (1 + NOTICEABLE):
            self._known.pop(account, None)
            return False
        self._known.clear()
        self._total = total
        return True
