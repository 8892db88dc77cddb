"""One scheduling cycle: who starts now, and who is asked to leave for whom.

The cycle yields one decision at a time and the engine carries each out before asking for the next, so that the
view is always true. First come the preemptors whose victims have left: they start on exactly the devices they were
promised; a promise that can no longer be kept (a device failed or is in foreign use) is withdrawn and the job waits
as any other. Then the policy serves those who wait. What nobody who waits could use goes to elastic jobs.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy import grow
from gpusched.policy.decisions import Decision, Start, Withdraw
from gpusched.policy.fit import foreign_blocks, promised
from gpusched.policy.keeping_room import keep_room
from gpusched.policy.limits import limited
from gpusched.policy.policies import policy_of
from gpusched.policy.reserve import closed
from gpusched.policy.view import View


def cycle(view: View, now: Instant) -> Iterator[Decision]:
    """The decisions of one cycle, in order. The caller applies each to the view before taking the next."""
    if view.claimants:
        yield from _promises(view, now)
    view.age(now)
    keep_room(view, now)
    if view.buckets:
        yield from policy_of(view.rules).serve(view, now)
    if view.elastic:
        yield from grow.decide(view, now)


def next_look(view: View, now: Instant) -> float | None:
    """When (boot clock) the passing of time alone can make a cycle decide otherwise; None: never."""
    look, aging = policy_of(view.rules).next_look(view, now), view.next_aging(now)
    growing = grow.next_look(view, now) if view.elastic else None
    if aging is None and growing is None:
        return look
    return min(other for other in (look, aging, growing) if other is not None)


def _promises(view: View, now: Instant) -> Iterator[Decision]:
    for job_id in sorted(view.claimants, key=lambda i: view.order(view.jobs[i])):
        job = view.jobs[job_id]
        broken = _broken_promise(view, job, now)
        if broken:
            yield Withdraw(job_id, broken)
            continue
        if view.array_full(job):
            continue
        shares = promised(view, job)
        if shares is not None:
            yield Start(job_id, shares)


def _broken_promise(view: View, job: Job, now: Instant) -> str:
    """Why the earmarked devices can never become the job's, or nothing if they still can."""
    if (limit := limited(view, job)) is not None:
        return limit.text
    shut = closed(view, job, now)
    for uuid in job.earmark:
        slot = view.slots.get(uuid)
        if slot is None or not slot.device.usable:
            return f"device {slot.device.index if slot else uuid} is no longer usable"
        if slot.kept_for != job.id:
            return f"device {slot.device.index} is kept for job {slot.kept_for}"
        if foreign_blocks(slot, job.spec.request, view.rules.foreign_floor_mib):
            return f"device {slot.device.index} is in use by processes outside gpusched"
        if uuid in shut:
            return f"device {slot.device.index} is reserved"
    if promised(view, job) is not None:
        return ""
    with view.without(view.departing(job)):
        if promised(view, job) is None:
            return "what it was promised has not become free"
    return ""
