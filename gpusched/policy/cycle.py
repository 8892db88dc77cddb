"""One scheduling cycle: who starts now, and who is asked to leave for whom.

The cycle yields one decision at a time and the engine carries each out before asking for the next, so that the
view is always true. The steps:

1. Preemptors whose victims have left start on exactly the devices they were promised; a promise that can no longer
   be kept (a device failed or is in foreign use) is withdrawn and the job waits as any other.
2. The waiting jobs, in scheduling order (`View.order`): start what fits; else plan a preemption, if the level may;
   else it stays, and so do all jobs that ask for the same.
3. Fit-first with a bypass limit: a later job may start on devices that an earlier one cannot use *now*. Each time
   it is counted on the first job that waits and could run on the devices as they are today; past the limit the
   devices that job could use are kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from gpusched.model.job import Job, Share
from gpusched.policy.fit import fit, foreign_blocks, possible
from gpusched.policy.preempt import Plan, plan_preemption
from gpusched.policy.view import Bucket, View


@dataclass(frozen=True, slots=True)
class Start:
    job_id: int
    devices: tuple[Share, ...]
    past: int | None = None  # the waiting job that this start goes past


@dataclass(frozen=True, slots=True)
class Preempt:
    job_id: int
    plan: Plan
    past: int | None = None  # the waiting job that this plan goes past


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The promise of devices to this job cannot be kept."""

    job_id: int
    reason: str


Decision = Start | Preempt | Withdraw


def cycle(view: View) -> Iterator[Decision]:
    """The decisions of one cycle, in order. The caller applies each to the view before taking the next."""
    yield from _promises(view)
    yield from _queue(view)


def _promises(view: View) -> Iterator[Decision]:
    for job_id in sorted(view.claimants, key=lambda i: view.order(view.jobs[i])):
        job = view.jobs[job_id]
        broken = _broken_promise(view, job)
        if broken:
            yield Withdraw(job_id, broken)
            continue
        if view.array_full(job):
            continue
        shares = fit(view, job, guarded=_all_but(view, job.earmark))
        if shares is not None:
            yield Start(job_id, shares)


def _broken_promise(view: View, job: Job) -> str:
    """Why the earmarked devices can never become the job's, or nothing if they still can."""
    for uuid in job.earmark:
        slot = view.slots.get(uuid)
        if slot is None or not slot.device.usable:
            return f"device {slot.device.index if slot else uuid} is no longer usable"
        if slot.kept_for != job.id:
            return f"device {slot.device.index} is kept for job {slot.kept_for}"
        if foreign_blocks(slot, job.spec.request, view.rules.foreign_floor_mib):
            return f"device {slot.device.index} is in use by processes outside gpusched"
    with view.without(view.departing(job)):
        if fit(view, job, guarded=_all_but(view, job.earmark)) is None:
            return "what it was promised has not become free"
    return ""


def _all_but(view: View, uuids: tuple[str, ...]) -> set[str]:
    return view.slots.keys() - set(uuids)


def _queue(view: View) -> Iterator[Decision]:
    heads = [(view.order(view.jobs[ids[0]]), bucket) for bucket, ids in view.buckets.items()]
    heapify(heads)
    first_waiting: Job | None = None
    guarded: set[str] = set()
    while heads:
        (_, _, job_id), bucket = heappop(heads)
        job = view.jobs[job_id]
        if view.array_full(job):
            continue
        shares = fit(view, job, guarded)
        if shares is not None:
            past = _goes_past(view, first_waiting, tuple(share.uuid for share in shares))
            yield Start(job_id, shares, past)
            _push_next(view, heads, bucket)
            continue
        plan = plan_preemption(view, job, guarded)
        if plan is not None:
            yield Preempt(job_id, plan, _goes_past(view, first_waiting, plan.devices))
            _push_next(view, heads, bucket)
            continue
        if first_waiting is None and job.spec.request.gpus and possible(view, job.spec.request):
            first_waiting = job
            if job.bypassed >= view.rules.bypass_limit:
                guarded = {slot.device.uuid for slot in view.suitable(job.spec.request)}


def _push_next(view: View, heads: list[tuple[tuple[bool, int, int], Bucket]], bucket: Bucket) -> None:
    ids = view.buckets.get(bucket)
    if ids:
        heappush(heads, (view.order(view.jobs[ids[0]]), bucket))


def _goes_past(view: View, waiting: Job | None, uuids: tuple[str, ...]) -> int | None:
    if waiting is None:
        return None
    wanted = waiting.spec.request
    useful = any(view.suits(view.slots[uuid].device, wanted) for uuid in uuids)
    return waiting.id if useful else None
