"""Who would run, if the devices were counted out anew to all jobs of a level in one order, running or waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from operator import attrgetter

from gpusched.model.clock import Instant
from gpusched.model.evolve import swift
from gpusched.model.job import Attempt, Job
from gpusched.model.policy import PolicyName
from gpusched.policy import ranks
from gpusched.policy.allotment import Allotment
from gpusched.policy.coming_back import comes_back, has_shown
from gpusched.policy.limits import limited, need
from gpusched.policy.parts import Parts
from gpusched.policy.passing import Reach
from gpusched.policy.queue import Order, key
from gpusched.policy.view import View
from gpusched.policy.waiting import Bucket, Rank

_RANKS: dict[PolicyName, Callable[[View, Job, Instant | None], Rank]] = {
    PolicyName.SRTF: ranks.time_left,
    PolicyName.SRSF: ranks.service_left,
    PolicyName.LAS: ranks.attained_service,
    PolicyName.PREDICTED: ranks.prediction,
}

_Entry = tuple[Order, Bucket, int]  # the place of a job in its bucket


@swift
@dataclass(frozen=True, slots=True)
class Standing:
    """A running job in the order."""

    order: Order
    job: Job
    attempt: Attempt


@dataclass(slots=True)
class Shares:
    """Who is granted devices, in order, and who runs without being granted any."""

    waiting: list[Job]
    losing: list[Standing]  # in order; those who may be asked to leave
    entitled: frozenset[int] = frozenset()  # of those who wait: who gets what is its account's part
    _asked: list[Standing] | None = None

    def in_order_of_asking(self) -> list[Standing]:
        """Those who lose theirs: who is over a quota first, then the lowest level, then who has moved least often,
        then who stands last."""
        if self._asked is None:
            last_first = self.losing[::-1]  # a stable sort keeps this order among equals
            self._asked = sorted(last_first, key=lambda s: (-s.order[0], -s.order[1], s.job.preemptions))
        return self._asked


def share_out(view: View, now: Instant) -> Shares:
    """Go through all jobs in order and count the devices out."""
    running, staying = standings(view, now)
    requests = {bucket.request for bucket in view.buckets} | {s.job.spec.request for s in (*running, *staying)}
    requests |= {view.jobs[job_id].spec.request for job_id in view.claimants}
    allotment = Allotment(view, requests)
    for standing in staying:
        young = is_young(view, standing.attempt, now)
        allotment.force(standing.job.spec.request, standing.attempt, young=young)
    for job_id in view.claimants:
        allotment.force(view.jobs[job_id].spec.request)
    granted: set[int] = set()
    waiting: list[tuple[Order, Job]] = []
    arrays: Counter[int] = Counter()  # elements that are granted devices, by array
    if view.rules.policy.between_accounts and view.rules.policy.name is PolicyName.LAS:
        parts = Parts(view, now, {standing.job.id for standing in running})
        if parts.several:
            waiting += _count_out(view, now, allotment, running, granted, parts, arrays)
    entitled = frozenset(job.id for _, job in waiting)
    waiting += _count_out(view, now, allotment, running, granted, None, arrays)
    for _, job in waiting:
        view.in_use.put(job, None, promised=False)
    waiting.sort(key=lambda found: in_turn(found[0], found[1].id in entitled))
    return Shares([job for _, job in waiting], [s for s in running if s.job.id not in granted], entitled)


def in_turn(order: Order, entitled: bool) -> tuple[int, int, bool, Order]:
    """In what order those who wait are served: in one level first who gets what is its account's part."""
    return order[0], order[1], not entitled, order


def _count_out(
    view: View, now: Instant, allotment: Allotment, running: list[Standing], granted: set[int], parts: Parts | None,
    arrays: Counter[int],
) -> list[tuple[Order, Job]]:  # fmt: skip
    """Grant devices in order to those who have none yet, and return who of them waits, with their places in the order.

    parts: only up to what is each account's part. That may be what young jobs of others still hold: else these, one
    after the other, could keep a gang waiting for ever. Limits and quotas count what is granted as used.
    """
    waiting = []
    line, reach = InOrder(view, running, granted), Reach(view, now)
    while not allotment.spent and (found := line.next()) is not None:
        job, standing, order = found
        if standing is None:
            if view.array_full(job, arrays[array_of(job)]) or limited(view, job) is not None:
                line.refuse()
                continue
            if not reach(job):
                continue  # it waits for a reservation to end, not for its turn; a shorter one of its bucket may not
        if parts is not None and not _within_its_part(parts, allotment, job, order, standing is not None):
            line.refuse()
        elif allotment.grant(job.spec.request) or (
            parts is not None and standing is None and allotment.reserve(job.spec.request)
        ):
            granted.add(job.id)
            if standing is None:
                waiting.append((order, job))
                arrays[array_of(job)] += 1
                if view.in_use.active:
                    view.in_use.assume(job, need(view, job))
        else:
            line.refuse()
    return waiting


def _within_its_part(parts: Parts, allotment: Allotment, job: Job, order: Order, runs: bool) -> bool:
    """Take it from what is its account's part. Who is over a quota has no part of what others want."""
    if order[0] > 1:
        return False
    return parts.grant(job, allotment.need(job.spec.request), overdue=not runs and not order[2])


def array_of(job: Job) -> int:
    """The id of its array; 0: it is no element of one."""
    return job.array.array_id if job.array is not None else 0


class InOrder:
    """Running and waiting jobs one by one in their order, without those who have been passed already."""

    def __init__(self, view: View, running: list[Standing], passed: set[int]) -> None:
        self._view = view
        self._passed = set(passed)
        self._running = running
        self._place = 0
        self._last: tuple[Bucket, int] | None = None
        self._heap: list[_Entry] = []
        for bucket in view.buckets:
            if bucket.request.gpus:
                self._push(bucket, 0, list.append)
        heapify(self._heap)

    def next(self) -> tuple[Job, Standing | None, Order] | None:
        """The next job, with its standing if it runs, and its place in the order; None at the end."""
        if self._last is not None:
            bucket, place = self._last
            self._push(bucket, place + 1, heappush)
            self._last = None
        if self._view.in_use.quotas:
            self._look_again()
        while self._place < len(self._running):
            standing = self._running[self._place]
            if self._heap and self._heap[0][0] < standing.order:
                break
            self._place += 1
            if standing.job.id not in self._passed:
                return standing.job, standing, standing.order
        if not self._heap:
            return None
        order, bucket, place = heappop(self._heap)
        self._last = (bucket, place)
        return self._view.jobs[self._view.buckets[bucket].entries[place][1]], None, order

    def _look_again(self) -> None:
        """Jobs of an account that has been granted its quota meanwhile go behind all others."""
        while self._heap:
            before, bucket, place = self._heap[0]
            present = key(self._view, bucket, place)
            if present <= before:
                return
            heapreplace(self._heap, (present, bucket, place))

    def refuse(self) -> None:
        """What the last one asks for is not there, and there will not be more: nobody of its bucket is asked."""
        self._last = None

    def _push(self, bucket: Bucket, place: int, onto: Callable[[list[_Entry], _Entry], None]) -> None:
        """Put in the first job of the bucket, from this place on, that has not been passed."""
        entries = self._view.buckets[bucket].entries
        while place < len(entries) and entries[place][1] in self._passed:
            place += 1
        if place < len(entries):
            onto(self._heap, (key(self._view, bucket, place), bucket, place))


def standings(view: View, now: Instant) -> tuple[list[Standing], list[Standing]]:
    """The running jobs in order: those who may be asked to leave, and those who stay in any case."""
    rank = _RANKS[view.rules.policy.name]
    movable: list[Standing] = []
    staying: list[Standing] = []
    jobs, stopping, levels = view.jobs, view.stopping, dict[str, int]()
    for job_id, attempt in view.live.items():
        job = jobs[job_id]
        spec = job.spec
        if job_id in stopping or not spec.request.gpus:
            continue
        level = levels.get(spec.qos)
        if level is None:
            level = levels[spec.qos] = -view.priority(job)
        order = (view.standing(job), level, True, rank(view, job, now), job_id)
        standing = Standing(order, job, attempt)
        stays = is_young(view, attempt, now) or not can_move(job, attempt)
        (staying if stays else movable).append(standing)
    movable.sort(key=attrgetter("order"))
    return movable, staying


def is_young(view: View, attempt: Attempt, now: Instant) -> bool:
    """By the calm rules it may not be asked to leave yet."""
    rules = view.rules.policy
    return rules.calm and (attempt.started is None or now.boot - attempt.started < rules.min_run - 1e-9)


def can_move(job: Job, attempt: Attempt) -> bool:
    """It has shown that it can be stopped and go on: it watches for requests, or it has saved."""
    return comes_back(job) and has_shown(job, attempt)
