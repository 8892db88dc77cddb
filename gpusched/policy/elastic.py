"""Elastic jobs (`--gpus 2-8`): who may be moved, and what they could leave to a job that waits.

An elastic job starts on its least number of devices, so that every policy can count on that number alone. What it has
above it is lent: `offers` lists what could be had back for a waiting job, and that is always asked for before a whole
job is asked to leave. How such jobs grow is in grow.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.model.state import JobState
from gpusched.policy.coming_back import comes_back
from gpusched.policy.rights import may_reclaim
from gpusched.policy.speedup import speedup
from gpusched.policy.view import View
from gpusched.policy.waiting import waiting_since

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Offer:
    """Devices that an attempt would leave for a newcomer: all of them, or what an elastic job has above its least."""

    attempt: Attempt
    uuids: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return len(self.uuids) == len(self.attempt.devices)


@dataclass(frozen=True, slots=True)
class Give:
    """An elastic job goes on with `keeps` and leaves its other devices."""

    attempt: Attempt
    keeps: tuple[str, ...]


def offers(view: View, job: Job, now: Instant) -> list[Offer]:
    """What elastic jobs of `job`'s own and of lower levels could leave to it, in the order of asking:

    1. the lowest level first,
    2. then the job that loses the smallest part of its speed for each device, by its measured speed-up,
    3. then the youngest attempt, then the highest job id.
    """
    if not view.elastic or job.patient:
        return []
    wanted = view.kind(job.spec.request)
    found = []
    for job_id in view.elastic:
        attempt, other = view.live.get(job_id), view.jobs[job_id]
        if attempt is not None and may_give(view, other, attempt, job, now):
            spare = _spare(view, other, attempt, wanted)
            if spare:
                found.append((view.priority(other), _loss(other, attempt), -attempt.created, -job_id, spare, attempt))
    found.sort(key=lambda entry: entry[:4])
    return [Offer(attempt, spare) for *_, spare, attempt in found]


def may_give(view: View, other: Job, attempt: Attempt, job: Job, now: Instant) -> bool:
    """Whether a running elastic job may be asked to give devices to `job`.

    It is left in peace for `resize_interval` on each number of devices, except where `job` may preempt it as a whole,
    and for a job that has waited since before it took them.
    """
    if other.state not in (JobState.STARTING, JobState.RUNNING) or not comes_back(other):
        return False
    if len(attempt.devices) <= other.spec.request.gpus or view.priority(job) < view.priority(other):
        return False
    if view.rules.may_preempt(job.spec.qos, other.spec.qos) or may_reclaim(view, other, job):
        return True
    if settled(view, attempt, now):
        return True
    since = waiting_since(job)
    return since is not None and since < attempt.created_at


def settled(view: View, attempt: Attempt, now: Instant) -> bool:
    """It has run for `resize_interval` on its present number of devices."""
    return attempt.started is not None and settled_at(view, attempt.started) <= now.boot + _SLACK


def settling(view: View, now: Instant) -> list[float]:
    """When (boot clock) elastic jobs that are left in peace now can be asked for devices again."""
    live = [view.live[job_id] for job_id in view.elastic - view.stopping]
    ripe = [settled_at(view, attempt.started) for attempt in live if attempt.started is not None]
    return [moment for moment in ripe if moment > now.boot + _SLACK]


def settled_at(view: View, started: float) -> float:
    return started + view.rules.policy.resize_interval


def give(view: View, attempt: Attempt, taken: Collection[str]) -> Give:
    """What is left to the job when these devices of it are taken: the largest number that it can run on."""
    request = view.jobs[attempt.job_id].spec.request
    left = [uuid for uuid in attempt.uuids if uuid not in taken]
    first = _in_order_of_giving(view, attempt, left)
    keeps = set(first[len(left) - request.within(len(left)) :])
    return Give(attempt, tuple(uuid for uuid in left if uuid in keeps))


def _spare(view: View, other: Job, attempt: Attempt, wanted: Collection[str]) -> tuple[str, ...]:
    """Those of its devices that it could leave, as far as they are wanted."""
    most = len(attempt.devices) - other.spec.request.gpus
    useful = [uuid for uuid in attempt.uuids if uuid in wanted]
    return tuple(_in_order_of_giving(view, attempt, useful)[:most])


def _in_order_of_giving(view: View, attempt: Attempt, uuids: Collection[str]) -> list[str]:
    """What stays should be close together: first the devices in groups where the job has few, then high indexes."""
    group = {uuid: slot.device.group for uuid in attempt.uuids if (slot := view.slots.get(uuid)) is not None}
    many = Counter(group.values())

    def place(uuid: str) -> tuple[int, str, int, str]:
        slot = view.slots.get(uuid)
        index = slot.device.index if slot is not None else 0
        return many[group.get(uuid, "")], group.get(uuid, ""), -index, uuid

    return sorted(uuids, key=place)


def _loss(job: Job, attempt: Attempt) -> float:
    """The part of its speed that it loses for each device it gives back."""
    now, least = len(attempt.devices), job.spec.request.gpus
    return (1.0 - speedup(job.speeds, now, least)) / (now - least)
