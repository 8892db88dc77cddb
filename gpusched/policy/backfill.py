"""By priority, with a reservation for the first job that waits; later jobs go past if they do not delay it.

EASY backfill (Lifka 1995; Mu'alem and Feitelson 2001), by device instead of by count: when does the first waiting
job fit, as running jobs are expected to end, and on which devices? A later job may start on other devices, or on
these if it is expected to be gone by then. Where ends are not known no reservation can be made, and the bypass
limit of fit-first keeps the head from starving.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.expected import remaining, total
from gpusched.policy.fit import fit, possible
from gpusched.policy.limits import limited
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.priority import Shifts
from gpusched.policy.queue import Failed, Queue, anything_to_give, goes_past, less_shut
from gpusched.policy.reserve import closed, competes_for, openings, vacated
from gpusched.policy.view import Bucket, Lifted, View


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept for the first of those who wait for one kind of devices.

    until: boot clock; when it is expected to start on `devices`. None: nobody knows, and its passing is counted.
    """

    job: Job
    kind: frozenset[str]
    until: float | None
    devices: frozenset[str]


def serve(view: View, now: Instant) -> Iterator[Decision]:
    if not anything_to_give(view):
        return
    queue, failed = Queue(view, Shifts(view, now)), Failed(view)
    kept: list[Kept] = []
    looked_at = 0
    while (head := queue.pop()) is not None and looked_at <= view.rules.policy.backfill_depth:
        bucket, job = head
        kind = competes_for(view, bucket.request)
        mine = [k for k in kept if k.kind is kind or not k.kind.isdisjoint(kind)]
        if mine and failed.covers(bucket):
            continue
        looked_at += bool(mine)
        if view.array_full(job) or limited(view, job) is not None:
            continue
        decision = _decide(view, now, job, mine)
        if decision is not None:
            yield decision
            if not anything_to_give(view):
                return
            queue.push_next(bucket)
            continue
        shut = closed(view, job, now)
        if not mine:
            if possible(view, bucket.request):
                kept.append(reserve(view, now, job))
                mine = kept[-1:]
        elif fit(view, job, shut) is not None:
            looked_at += yield from _shorter_ones(view, now, bucket, mine, looked_at)
        elif not shut:
            failed.add(bucket)
        for other, _ in less_shut(view, bucket, now, shut):
            looked_at += 1
            decision = _decide(view, now, other, mine)
            if decision is not None:
                yield decision


def _decide(view: View, now: Instant, job: Job, kept: list[Kept]) -> Decision | None:
    """A start or a preemption that delays nobody for whom something is kept."""
    shut = closed(view, job, now)
    beside = frozenset().union(*(_shut_by(view, job, now, k) for k in kept)) if kept else frozenset()
    past = kept[0].job if kept and kept[0].until is None else None
    shares = fit(view, job, shut | beside)
    if shares is None and kept and _gone_by(view, job, now, kept):
        shares = fit(view, job, shut)
    if shares is not None:
        return Start(job.id, shares, goes_past(view, past, tuple([share.uuid for share in shares])))
    plan = plan_preemption(view, job, now, shut | beside)
    return Preempt(job.id, plan, goes_past(view, past, plan.devices)) if plan is not None else None


def _shut_by(view: View, job: Job, now: Instant, kept: Kept) -> frozenset[str]:
    """The devices that only those may have meanwhile who are gone in time."""
    if kept.until is not None:
        return kept.devices - vacated(view, job, now, kept.until)
    return kept.kind if kept.job.bypassed >= view.rules.bypass_limit else frozenset()


def _gone_by(view: View, job: Job, now: Instant, kept: list[Kept]) -> bool:
    if any(k.until is None for k in kept):
        return False
    seconds = time_left(view, job)
    return seconds is not None and all(now.boot + seconds <= (k.until or 0.0) for k in kept)


def time_left(view: View, job: Job) -> float | None:
    """Seconds that a waiting job is expected to run when it is started; None: nobody knows."""
    whole = total(view, job)
    return None if whole is None else max(0.0, whole + job.lost - job.ran)


def _shorter_ones(
    view: View, now: Instant, bucket: Bucket, kept: list[Kept], looked_at: int
) -> Generator[Decision, None, int]:
    """The bucket's first job would fit but stay too long: those behind it that are short enough start. Returns how
    many were looked at."""
    before = looked_at
    if any(k.until is None for k in kept):
        return 0
    window = min(k.until or 0.0 for k in kept) - now.boot
    waiting = view.buckets[bucket]
    if waiting.shortest is None or waiting.shortest[0] != waiting.version:
        times = (time_left(view, job) for job in view.queued(bucket))
        waiting.shortest = (waiting.version, min((t for t in times if t is not None), default=float("inf")))
    if waiting.shortest[1] > window:
        return 0
    for job in list(view.queued(bucket)):
        looked_at += 1
        if looked_at > view.rules.policy.backfill_depth:
            break
        seconds = time_left(view, job)
        if seconds is None or seconds > window or limited(view, job) is not None or view.array_full(job):
            continue
        shares = fit(view, job, closed(view, job, now))
        if shares is None:
            if view.reservations:
                continue  # a shorter one may be allowed where this one is not
            break  # the place is taken: nobody of this bucket fits any more
        yield Start(job.id, shares)
    return looked_at - before


def reserve(view: View, now: Instant, job: Job) -> Kept:
    """When and where `job` could start first, if running jobs end as expected and nobody new gets in its way."""
    request, kind = job.spec.request, competes_for(view, job.spec.request)
    if not request.gpus:
        return Kept(job, kind, None, frozenset())
    lifted: Lifted = []
    try:
        for attempt in view.departing(job):
            view.lift(attempt, lifted)
        for end, leaving in ends(view, now, view.kind(request), openings(view, job, now)):
            if leaving is not None:
                view.lift(leaving, lifted)
            shares = None if _too_few(view, job) else fit(view, job, closed(view, job, now.later(end - now.boot)))
            if shares is not None:
                return Kept(job, kind, end, frozenset(share.uuid for share in shares))
    finally:
        view.put_back(lifted)
    return Kept(job, kind, None, frozenset())


def _too_few(view: View, job: Job) -> bool:
    request = job.spec.request
    return not request.shared and view.pool(request).open < request.gpus


def ends(
    view: View, now: Instant, kind: frozenset[str], others: Iterable[float] = ()
) -> list[tuple[float, Attempt | None]]:
    """The running attempts on devices of this kind by when (boot clock) they are expected to end, if that is known.

    others: moments at which something else ends (the windows of reservations); they come without an attempt.
    """
    found: list[tuple[float, int, Attempt | None]] = [(moment, 0, None) for moment in others]
    for job_id, attempt in view.live.items():
        if job_id in view.stopping or not any(share.uuid in kind for share in attempt.devices):
            continue
        seconds = remaining(view, view.jobs[job_id], now)
        if seconds is not None:
            found.append((now.boot + seconds, job_id, attempt))
    found.sort(key=lambda entry: entry[:2])
    return [(end, attempt) for end, _, attempt in found]
