"""Where a job stands under the policies that preempt: by time left, service left, attained service or prediction.

Every rank is a tuple, smaller first. That of a waiting job stays as it is while the job waits; that of a running one
is asked for at each decision. `now` is None for a job that waits.
"""

from __future__ import annotations

from bisect import bisect_right
from math import ceil, floor, log2, sqrt
from typing import Any

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.policy import PolicyRules
from gpusched.policy.expected import running_for, total
from gpusched.policy.view import View
from gpusched.policy.waiting import Rank

_STAYS = 0.25  # of the index of a running job under `predicted`: who waits must be that far ahead
_SLACK = 1e-6  # device-seconds: times are sums of floats
_AT_ONCE = 1e-6  # seconds
_REMEMBERED = 20  # moves of a job that settle ties between those who are moved together
_WITH_PLACE = 5  # the length of the rank of a waiting job, its place when it left being the last of it
Place = tuple[float, int, Any]  # among those who run in a queue: see _place


def time_left(view: View, job: Job, now: Instant | None) -> Rank:
    """Shortest remaining time first (SRTF); jobs of unknown duration behind, the least attained first."""
    left = _left(view, job, now)
    return (1, attained(view, job, now)) if left is None else (0, left)


def service_left(view: View, job: Job, now: Instant | None) -> Rank:
    """Smallest remaining time × devices first (SRSF, Tiresias NSDI'19)."""
    left = _left(view, job, now)
    return (1, attained(view, job, now)) if left is None else (0, left * job.spec.request.gpus)


def attained_service(view: View, job: Job, now: Instant | None) -> Rank:
    """2D-LAS (Tiresias NSDI'19): queues by attained device-seconds; inside one, as the rules say, running jobs first
    and of the waiting ones those who left last, else in the order of submission."""
    rules = view.rules.policy
    queue = queue_of(rules, attained(view, job, now))
    if not rules.running_first:
        return (queue, 0)
    stood = view.stood.get(job.id, ())
    if now is None:
        return (queue, 1, *_line(rules, job, queue), _place_left(rules, job, queue, _trimmed(stood)))
    attempt = view.live[job.id]
    began = attempt.started if attempt.started is not None else attempt.created
    place = _place(rules, queue, began, job.gpu_seconds, held(view, job), stood)
    since, came, before = place
    if came and since >= now.boot - _AT_ONCE:
        return (queue, 1, 1, now.wall, before)  # it comes into the queue at this moment: behind those who wait there
    return (queue, 0, place)


def _line(rules: PolicyRules, job: Job, queue: int) -> tuple[int, float]:
    """The place among those who wait in a queue: who left last goes first, behind them who came into it since then,
    at its submission or because it reached the limit at the moment at which it left."""
    if job.requeued_at is None:
        return 1, job.eligible_at or 0.0
    return (1, job.requeued_at) if _left_on_arrival(rules, job, queue) else (0, -job.requeued_at)


def _left_on_arrival(rules: PolicyRules, job: Job, queue: int) -> bool:
    over = (job.gpu_seconds - lower_limit(rules, queue)) / max(1, job.spec.request.gpus)
    return queue > 0 and over < max(rules.tick, _AT_ONCE) - _SLACK / 10


def _place(rules: PolicyRules, queue: int, began: float, before: float, gpus: int, stood: Rank) -> Place:
    """The place of a running job among those who run in a queue: since when, whether it came from the queue before
    (those who started at that moment go first), and if so its place there, else how it stood when it waited.

    began: when the attempt did. before: device-seconds that the job had had until then.
    """
    needed = lower_limit(rules, queue) - before
    if not queue or needed <= _SLACK:  # in the first queue it was from the beginning, whatever two clocks make of it
        return began, 0, stood
    since = _on_grid(rules, began + needed / max(1, gpus))
    return since, 1, _place(rules, queue - 1, began, before, gpus, stood)


def _place_left(rules: PolicyRules, job: Job, queue: int, stood: Rank) -> Place:
    """Its place when it left, which settles the order of those who left at one moment."""
    if job.requeued_at is None or job.started_at is None:
        return 0.0, 0, stood
    gpus = job.spec.request.gpus
    before = job.gpu_seconds - (job.requeued_at - job.started_at) * gpus
    place = _place(rules, queue, job.started_at, before, gpus, stood)
    return place[2] if place[1] and _left_on_arrival(rules, job, queue) else place


def _trimmed(stood: Rank, moves: int = _REMEMBERED) -> Rank:
    """How it stood when it waited last, and at its last moves before that: those who are moved together again and
    again keep their order, and nothing grows for ever."""
    if not moves or len(stood) != _WITH_PLACE:
        return ()
    return (*stood[:-1], _trimmed_place(stood[-1], moves))


def _trimmed_place(place: Place, moves: int) -> Place:
    since, came, before = place
    return since, came, _trimmed_place(before, moves) if came else _trimmed(before, moves - 1)


def prediction(view: View, job: Job, now: Instant | None) -> Rank:
    """By the index of what is known of similar jobs (predict.RunTimes) × the square root of the devices: small gangs
    first, but not by as much as their size. A running job stays until another one is well ahead of it: an index is a
    guess, and who is moved for a wrong one will be moved back for the next."""
    gpus = job.spec.request.gpus
    ran = max(0.0, job.ran - job.lost + (running_for(view, job, now) if now is not None else 0.0))
    seconds = view.durations.index(job.owner.user, job.account, job.spec.name, gpus, ran)
    return (seconds * (_STAYS if now is not None else 1.0) * sqrt(max(1, gpus)),)


def attained(view: View, job: Job, now: Instant | None) -> float:
    """Device-seconds that the job has had so far."""
    if now is None:
        return job.gpu_seconds
    return job.gpu_seconds + running_for(view, job, now) * held(view, job)


def held(view: View, job: Job) -> int:
    """Devices that a running job has: an elastic one may have more than it asks for at least."""
    attempt = view.live.get(job.id) if job.spec.request.gpus_max is not None else None
    return job.spec.request.gpus if attempt is None else len(attempt.devices)


def queue_of(rules: PolicyRules, service: float) -> int:
    """The queue of a job with this attained service. Behind the last limit each queue is twice as long as the one
    before, if the rules want slices: of two equal jobs the one that has had less is then soon ahead."""
    limits = rules.las_limits
    queue = bisect_right(limits, service + _SLACK)
    if queue == len(limits) and rules.las_slices:
        queue += max(0, floor(log2((service + _SLACK) / limits[-1])))
    return queue


def lower_limit(rules: PolicyRules, queue: int) -> float:
    """The attained device-seconds at which a job comes into this queue."""
    limits = rules.las_limits
    if queue <= len(limits):
        return limits[queue - 1] if queue else 0.0
    return limits[-1] * float(2 ** (queue - len(limits)))


def _left(view: View, job: Job, now: Instant | None) -> float | None:
    whole = total(view, job)
    if whole is None:
        return None
    ran = job.ran + (running_for(view, job, now) if now is not None else 0.0)
    return max(0.0, whole + job.lost - ran)


def _on_grid(rules: PolicyRules, moment: float) -> float:
    return ceil(moment / rules.tick - 1e-9) * rules.tick if rules.tick else moment
