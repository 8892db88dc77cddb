"""One after the other: the first that does not fit blocks those behind it who want the same devices (fifo, sjf)."""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.expected import total
from gpusched.policy.fit import fit, possible
from gpusched.policy.limits import limited
from gpusched.policy.passing import serve_less_shut
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.queue import Queue, anything_to_give
from gpusched.policy.reserve import closed, competes_for
from gpusched.policy.view import View


def submission(view: View, job: Job) -> float:
    """In the order of submission, which is that of the ids."""
    return 0.0


def duration(view: View, job: Job) -> float:
    """Shortest first; jobs of which nobody knows how long they run come last."""
    seconds = total(view, job)
    return float("inf") if seconds is None else seconds


def serve(view: View, now: Instant) -> Iterator[Decision]:
    if not anything_to_give(view):
        return
    queue = Queue(view)
    blocked: list[frozenset[str]] = []  # what the jobs that wait want
    while (head := queue.pop()) is not None:
        bucket, job = head
        if blocked and _in_the_way(blocked, competes_for(view, bucket.request)):
            continue
        if view.array_full(job) or limited(view, job) is not None:
            continue
        shut = closed(view, job, now)
        shares = fit(view, job, shut)
        if shares is not None:
            yield Start(job.id, shares)
            queue.push_next(bucket)
            continue
        plan = plan_preemption(view, job, now, shut)
        if plan is not None:
            yield Preempt(job.id, plan)
            queue.push_next(bucket)
        elif possible(view, bucket.request, shut):
            blocked.append(competes_for(view, bucket.request))
        else:
            yield from serve_less_shut(view, bucket, now, shut)


def _in_the_way(blocked: list[frozenset[str]], kind: frozenset[str]) -> bool:
    return any(kind is other or not kind.isdisjoint(other) for other in blocked)
