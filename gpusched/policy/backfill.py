"""By priority, with a reservation for the first job that waits; later jobs go past if they do not delay it.

EASY backfill (Lifka 1995; Mu'alem and Feitelson 2001), by device instead of by count: when does the first waiting
job fit, as running jobs are expected to end, and on which devices? A later job may start on other devices, or on
these if it is expected to be gone by then. Where ends are not known no reservation can be made, and the bypass
limit of fit-first keeps the head from starving.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.elastic import offers, settling
from gpusched.policy.expected import remaining, time_left
from gpusched.policy.fit import fit, possible
from gpusched.policy.holdings import Lifted
from gpusched.policy.limits import limited
from gpusched.policy.passing import less_shut
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.priority import Shifts
from gpusched.policy.queue import Failed, Order, Queue, anything_to_give, goes_past, key
from gpusched.policy.reserve import closed, competes_for, openings, taken, vacated
from gpusched.policy.view import Bucket, View


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
    shift = Shifts(view, now)
    queue, kept, behind = Queue(view, shift), list[Kept](), list[Bucket]()
    while (head := queue.pop()) is not None:
        bucket, job = head
        if _in_the_way(view, kept, bucket):
            behind.append(bucket)
            continue
        if view.array_full(job) or limited(view, job) is not None:
            continue
        decision = _decide(view, now, job, [])
        if decision is not None:
            yield decision
            if not anything_to_give(view):
                return
            queue.push_next(bucket)
            continue
        if possible(view, bucket.request):
            kept.append(keep_for(view, now, job))
            behind.append(bucket)
        for other, _ in less_shut(view, bucket, now, closed(view, job, now)):
            decision = _decide(view, now, other, kept[-1:])
            if decision is not None:
                yield decision
    if behind:
        yield from _beside(view, now, kept, behind, shift)


def _in_the_way(view: View, kept: list[Kept], bucket: Bucket) -> list[Kept]:
    """For whom devices are kept that this bucket's jobs could use too."""
    kind = competes_for(view, bucket.request)
    return [k for k in kept if k.kind is kind or not k.kind.isdisjoint(kind)]


def _beside(view: View, now: Instant, kept: list[Kept], behind: list[Bucket], shift: Shifts) -> Iterator[Decision]:
    """Those behind the first ones that wait: of one level the shortest first (EASY-SJBF, Tsafrir et al. 2007), which
    harms none of the first ones. So if the shortest of a bucket finds no place, the longer ones need not be tried.
    Where nobody knows when a first one can start, they come by their priority, and their passing is counted."""
    failed, waits = Failed(view), {k.job.id for k in kept}
    line: list[tuple[Order, Bucket, int]] = []
    timed = {bucket: all(k.until is not None for k in _in_the_way(view, kept, bucket)) for bucket in behind}

    def push(bucket: Bucket, place: int) -> None:
        waiting = view.buckets.get(bucket)
        entries = () if waiting is None else waiting.lengths if timed[bucket] else waiting.entries
        while place < len(entries) and entries[place][1] in waits:
            place += 1
        if place < len(entries):
            rank, job_id = entries[place]
            yielding, level, patient, first, _ = key(view, bucket, 0, shift[bucket.account])
            among = (rank, first) if timed[bucket] else (0.0, first)
            heappush(line, ((yielding, level, patient, among, job_id), bucket, place))

    for bucket in behind:
        push(bucket, 0)
    while line:
        _, bucket, place = heappop(line)
        waiting = view.buckets[bucket]
        job = view.jobs[(waiting.lengths if timed[bucket] else waiting.entries)[place][1]]
        if failed.covers(bucket) or view.array_full(job) or limited(view, job) is not None:
            continue
        decision = _decide(view, now, job, _in_the_way(view, kept, bucket))
        if decision is not None:
            yield decision
            if not anything_to_give(view):
                return
            push(bucket, place)
        elif fit(view, job, taken(view, bucket.request)) is None:
            failed.add(bucket)


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


def keep_for(view: View, now: Instant, job: Job) -> Kept:
    """When and where `job` could start first, if running jobs end as expected and nobody new gets in its way."""
    request, kind = job.spec.request, competes_for(view, job.spec.request)
    if not request.gpus:
        return Kept(job, kind, None, frozenset())
    lifted: Lifted = []
    try:
        for attempt in view.departing(job):
            view.lift(attempt, lifted)
        others = openings(view, job, now)
        if view.elastic:
            others = [*others, *settling(view, now)]
        for end, leaving in ends(view, now, view.kind(request), others):
            if leaving is not None:
                view.lift(leaving, lifted)
            if view.elastic:  # what they will give back for it
                for offer in offers(view, job, now.later(end - now.boot)):
                    view.lift(offer.attempt, lifted, offer.uuids)
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

    others: moments at which something else ends (windows of reservations, the rest of elastic jobs); they come without
    an attempt.
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
