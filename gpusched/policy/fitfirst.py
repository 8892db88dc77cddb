"""Whatever fits starts, in the order of priority, with a bypass limit so that no head starves.

Each time a later job starts on devices that the first waiting one could use, it is counted on the one that waits;
past the limit these devices are kept for it. Needs no durations.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.fit import fit, possible
from gpusched.policy.limits import limited
from gpusched.policy.passing import serve_less_shut
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.priority import Shifts
from gpusched.policy.queue import Failed, Queue, anything_to_give, goes_past
from gpusched.policy.reserve import closed, competes_for, taken
from gpusched.policy.view import View


def serve(view: View, now: Instant) -> Iterator[Decision]:
    if not anything_to_give(view):
        return
    queue, failed = Queue(view, Shifts(view, now)), Failed(view)
    first_waiting: Job | None = None
    kept: frozenset[str] = frozenset()
    while (head := queue.pop()) is not None:
        bucket, job = head
        if view.array_full(job) or limited(view, job) is not None:
            continue
        if not failed.covers(bucket):
            reserved = closed(view, job, now)
            shut = reserved | kept
            shares = fit(view, job, shut)
            if shares is not None:
                yield Start(job.id, shares, goes_past(view, first_waiting, tuple([s.uuid for s in shares])))
                if not anything_to_give(view):
                    return
                queue.push_next(bucket)
                continue
            plan = plan_preemption(view, job, now, shut)
            if plan is not None:
                yield Preempt(job.id, plan, goes_past(view, first_waiting, plan.devices))
                queue.push_next(bucket)
                continue
            if not reserved or fit(view, job, taken(view, bucket.request) | kept) is None:
                failed.add(bucket)
            yield from serve_less_shut(view, bucket, now, reserved, kept, first_waiting)
        wanted = bucket.request
        if first_waiting is None and wanted.gpus and possible(view, wanted, taken(view, wanted)):
            first_waiting = job
            if job.bypassed >= view.rules.bypass_limit:
                kept = competes_for(view, wanted)
