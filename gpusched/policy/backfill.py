"""By priority, with a reservation for the first job that waits; later jobs go past if they do not delay it.

EASY backfill (Lifka 1995; Mu'alem and Feitelson 2001), by device instead of by count: when does the first waiting
job fit, as running jobs are expected to end, and on which devices? A later job may start on other devices, or on
these if it is expected to be gone by then. Where nobody knows when a running job ends, it is supposed that it runs as
long again as it has run, and that an unknown job which waits needs `hold` (ten minutes): while those that run are
young the free devices are kept, later they are used. Those who pass on such a guess are counted, and the bypass limit
of fit-first keeps the head from starving.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.expected import end_expected
from gpusched.policy.fit import fit, possible
from gpusched.policy.kept import Kept, keep_for, no_more, time_wanted
from gpusched.policy.limits import limited
from gpusched.policy.passing import less_shut
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.priority import Shifts
from gpusched.policy.queue import Failed, Order, Queue, anything_to_give, goes_past, key
from gpusched.policy.reserve import closed, competes_for, taken, vacated
from gpusched.policy.view import View
from gpusched.policy.waiting import Bucket

_NONE: frozenset[str] = frozenset()


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
    before = kept
    shares = fit(view, job, shut | _shut_by(view, job, now, kept))
    if shares is None and kept and _gone_by(view, job, now, kept):
        before = []
        shares = fit(view, job, shut)
    if shares is not None:
        return Start(job.id, shares, _past(view, kept, tuple([share.uuid for share in shares])))
    # who gave its devices back asks nobody to leave; what others ask for is not kept from them for it
    plan = plan_preemption(view, job, now, shut | _shut_by(view, job, now, [k for k in before if not k.job.patient]))
    return Preempt(job.id, plan, _past(view, kept, plan.devices)) if plan is not None else None


def _past(view: View, kept: list[Kept], uuids: tuple[str, ...]) -> int | None:
    """The id of the waiting job that is gone past on a guess."""
    passed = next((k.job for k in kept if k.counts(frozenset(uuids))), None)
    return goes_past(view, passed, uuids)


def _shut_by(view: View, job: Job, now: Instant, kept: list[Kept]) -> frozenset[str]:
    """The devices that only those may have meanwhile who are gone in time."""
    shut = _NONE
    for k in kept:
        if no_more(view, k):
            shut |= k.kind
        elif k.until is not None:
            shut |= k.devices - vacated(view, job, now, k.until)
    return shut


def _gone_by(view: View, job: Job, now: Instant, kept: list[Kept]) -> bool:
    """The job would be over before any of those could start for whom devices are kept."""
    seconds, unknown = time_wanted(view, job)
    for k in kept:
        if k.until is None or now.boot + seconds > k.until or no_more(view, k) or (unknown and not k.guessed):
            return False
    return True


def next_look(view: View, now: Instant) -> float | None:
    """When (boot clock) a job of which nothing is known has run for so long that others may use the time behind it."""
    if not view.buckets or not anything_to_give(view):
        return None
    hold = view.rules.policy.hold
    wanted = {hold, *(w.lengths[0][0] for w in view.buckets.values() if w.lengths and w.lengths[0][0] < hold)}
    looks: list[float] = []
    for job_id, attempt in view.live.items():
        if attempt.started is None or now.boot - attempt.started >= hold:
            continue
        if end_expected(view, view.jobs[job_id], now)[1]:
            looks += [attempt.started + age for age in wanted if attempt.started + age > now.boot + 1e-9]
    return min(looks, default=None)
