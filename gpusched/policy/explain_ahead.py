"""Who goes before a waiting job, and why: in the terms of the policy in force, with priorities broken down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice, takewhile

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.policy import PolicyName
from gpusched.model.units import format_duration
from gpusched.policy import ranks
from gpusched.policy.expected import remaining, time_left, total
from gpusched.policy.priority import factors, scheduling_order
from gpusched.policy.queue import Order
from gpusched.policy.reserve import competes_for
from gpusched.policy.rights import quota_text
from gpusched.policy.view import View

_POINT = 0.5  # smaller differences of the priority are not worth a word
_EARLIER = "submitted earlier"


@dataclass(frozen=True, slots=True)
class Ahead:
    """A waiting job that goes first."""

    job_id: int
    text: str


def ahead(view: View, job: Job, now: Instant, most: int = 20) -> tuple[Ahead, ...]:
    """The waiting jobs that go before this one for something that it wants too, first things first."""
    order = scheduling_order(view, now)
    first = merge(*_competing_queues(view, job, order), key=order)
    before = islice(takewhile(lambda other: order(other) < order(job), first), most)
    return tuple(Ahead(other.id, _why_first(view, other, job, now)) for other in before)


def _competing_queues(view: View, job: Job, order: Callable[[Job], Order]) -> list[Iterator[Job]]:
    """The waiting jobs that compete with `job`, as sequences that are each in scheduling order."""
    claiming = [view.jobs[job_id] for job_id in view.claimants]
    queues = [iter(sorted((other for other in claiming if _compete(view, other, job)), key=order))]
    return [*queues, *(view.queued(bucket) for bucket in view.buckets if _compete(view, view.head(bucket), job))]


def _compete(view: View, one: Job, other: Job) -> bool:
    """Both want something that only one of them can have: a device, or a place among the CPU-only jobs."""
    return not competes_for(view, one.spec.request).isdisjoint(competes_for(view, other.spec.request))


def _why_first(view: View, other: Job, job: Job, now: Instant) -> str:
    """Why `other`, which waits, goes before `job`."""
    if job.yielding and not other.yielding:
        return f"job {job.key} gave its devices back and lets others go first, once"
    if view.standing(job) > 1 >= view.standing(other):
        return f"{quota_text(view, job)}: others go first"
    if view.priority(other) != view.priority(job):
        return f"QoS {other.spec.qos} goes before {job.spec.qos}"
    patience = view.rules.policy.patience
    if patience is not None and view.bucket(other).overdue:
        if view.bucket(job).overdue:
            return f"has waited longer, and both for more than {format_duration(patience)} (patience)"
        return f"has waited for more than {format_duration(patience)} (patience), so it goes before its level"
    return by_rank(view, other, job, now)


def by_rank(view: View, other: Job, job: Job, now: Instant) -> str:
    """Why `other`, which waits or runs, stands before `job`, which waits and is of the same level."""
    match view.rules.policy.name:
        case PolicyName.FIFO:
            return _EARLIER
        case PolicyName.BACKFILL | PolicyName.FIT_FIRST:
            return _by_priority(view, other, job, now)
        case PolicyName.SJF:
            return _shorter(total(view, other), total(view, job), "is expected to run")
        case PolicyName.SRTF:
            return _shorter(_left(view, other, now), _left(view, job, now), "has", " left")
        case PolicyName.SRSF:
            return _less_service(view, other, job, now)
        case PolicyName.LAS:
            return _less_attained(view, other, job, now)
        case PolicyName.PREDICTED:
            return "by the jobs like it, it is more likely to end soon"


def _left(view: View, job: Job, now: Instant) -> float | None:
    return remaining(view, job, now) if job.id in view.live else time_left(view, job)


def _shorter(its: float | None, mine: float | None, has: str, left: str = "") -> str:
    if its is None or its == mine:
        return _EARLIER
    than = "nobody knows how long this one runs" if mine is None else f"this one {format_duration(mine)}"
    return f"{has} {format_duration(its)}{left}, {than}"


def _less_service(view: View, other: Job, job: Job, now: Instant) -> str:
    its, mine = _left(view, other, now), _left(view, job, now)
    if its is None or (mine is not None and its * other.spec.request.gpus >= mine * job.spec.request.gpus):
        return _EARLIER
    than = "nobody knows how long this one runs"
    if mine is not None:
        than = f"this one {format_duration(mine)} on {job.spec.request.gpus}"
    return f"has {format_duration(its)} on {_devices(other)} left, {than}"


def _devices(job: Job) -> str:
    count = job.spec.request.gpus
    return f"{count} device{'s' * (count != 1)}"


def _less_attained(view: View, other: Job, job: Job, now: Instant) -> str:
    rules, runs = view.rules.policy, other.id in view.live
    its, mine = ranks.attained(view, other, now if runs else None), ranks.attained(view, job, None)
    queues = ranks.queue_of(rules, its), ranks.queue_of(rules, mine)
    if queues[0] < queues[1]:
        return f"has had {format_duration(its)} of device time so far, this one {format_duration(mine)}"
    if queues[0] > queues[1]:
        return f"account {other.account} has less than its part of the devices"
    if runs:
        return "runs, and has not had noticeably more device time"
    return _EARLIER if other.requeued_at is None else "left its devices later, with no more device time"


def _by_priority(view: View, other: Job, job: Job, now: Instant) -> str:
    """`priority 1,873 against 643: +1,200 fair share (bob used 2 % of late, ann 80 %), +30 age`."""
    its, mine = factors(view, other, now), factors(view, job, now)
    found = [
        (its.fair_share.points - mine.fair_share.points, "fair share", _use(view, other, job, now)),
        (its.age.points - mine.age.points, "age", ""),
        (its.size.points - mine.size.points, "size", f" ({other.spec.request.gpus} to {job.spec.request.gpus} GPUs)"),
        (its.nice.points - mine.nice.points, "nice", ""),
    ]
    parts = [entry for entry in found if abs(entry[0]) >= _POINT]
    if not parts:
        return _EARLIER
    parts.sort(key=lambda entry: -abs(entry[0]))
    told = ", ".join(f"{'+' if points > 0 else '−'}{abs(points):,.0f} {name}{more}" for points, name, more in parts)
    return f"priority {its.total:,.0f} against {mine.total:,.0f}: {told}"


def _use(view: View, other: Job, job: Job, now: Instant) -> str:
    everything = view.ledger.total(now.wall)
    if everything <= 0 or other.account == job.account:
        return ""
    its, mine = (100 * view.ledger.usage(j.account, now.wall) / everything for j in (other, job))
    return f" ({other.account} used {its:.0f} % of late, {job.account} {mine:.0f} %)"
