"""All jobs of a level in one order share the devices, running or waiting: who comes first runs (srtf, srsf, las,
predicted).

The devices are counted out in that order. Who runs without being granted any is asked to leave, who waits and is
granted some starts. By the calm rules nobody is asked to leave for a job that then would not fit, before `min_run`,
or where moving costs more than it brings; without them jobs are stopped by count alone, as the published simulators
have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.policy import PolicyName
from gpusched.model.state import JobState
from gpusched.policy import ranks
from gpusched.policy.allotment import Allotment
from gpusched.policy.costs import cost
from gpusched.policy.decisions import Decision, Evict, Preempt, Start
from gpusched.policy.expected import remaining, running_for
from gpusched.policy.fit import fit
from gpusched.policy.limits import limited
from gpusched.policy.preempt import Plan, may_leave, plan_among
from gpusched.policy.queue import Order, Queue, anything_to_give, key
from gpusched.policy.reserve import closed
from gpusched.policy.view import Bucket, Rank, View

_RANKS: dict[PolicyName, Callable[[View, Job, Instant | None], Rank]] = {
    PolicyName.SRTF: ranks.time_left,
    PolicyName.SRSF: ranks.service_left,
    PolicyName.LAS: ranks.attained_service,
    PolicyName.PREDICTED: ranks.prediction,
}
_LOOK_AGAIN = 300.0  # seconds after which predictions, which change with time, are looked at again


def by_time_left(view: View, job: Job) -> Rank:
    return ranks.time_left(view, job, None)


def by_service_left(view: View, job: Job) -> Rank:
    return ranks.service_left(view, job, None)


def by_attained(view: View, job: Job) -> Rank:
    return ranks.attained_service(view, job, None)


def by_prediction(view: View, job: Job) -> Rank:
    return ranks.prediction(view, job, None)


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


def serve(view: View, now: Instant) -> Iterator[Decision]:
    rules = view.rules.policy
    on_tick = on_grid(rules.tick, now.boot)
    if rules.tick_starts and not on_tick:
        return
    yield from _without_devices(view)
    if _everybody_fits(view):
        yield from _start_all(view, now)
        return
    if not (on_tick or anything_to_give(view)):
        return
    shares = share_out(view, now)
    if rules.calm:
        yield from _calmly(view, now, shares, may_ask=on_tick)
    else:
        yield from _by_count(view, now, shares)


def on_grid(tick: float, boot: float) -> bool:
    """Decisions about preemption may be made at this moment."""
    return tick <= 0 or abs(boot / tick - round(boot / tick)) * tick < 1e-6


def next_look(view: View, now: Instant) -> float | None:
    """When (boot clock) jobs may have to change places although nothing has happened: a limit is reached, a job has
    run for `min_run`, or the tick comes at which it may be decided what could not be decided now."""
    rules = view.rules.policy
    if not any(bucket.request.gpus for bucket in view.buckets):
        return None
    if not on_grid(rules.tick, now.boot):
        return _next_tick(rules.tick, now.boot)
    moments = []
    for job_id, attempt in view.live.items():
        job = view.jobs[job_id]
        if not job.spec.request.gpus or job_id in view.stopping:
            continue
        if rules.calm:
            moments.append((attempt.created if attempt.started is None else attempt.started) + rules.min_run)
        if rules.name is PolicyName.LAS:
            service = ranks.attained(view, job, now)
            limit = ranks.lower_limit(rules, ranks.queue_of(rules, service) + 1)
            if rules.las_slices or limit <= rules.las_limits[-1]:
                moments.append(now.boot + max(0.0, limit - service) / job.spec.request.gpus)
        elif rules.name is PolicyName.PREDICTED:
            moments.append(now.boot + _LOOK_AGAIN)
    nearest = min((moment for moment in moments if moment > now.boot + 1e-9), default=None)
    return nearest if nearest is None or not rules.tick else ceil(nearest / rules.tick - 1e-9) * rules.tick


def _next_tick(tick: float, boot: float) -> float:
    return (boot // tick + 1) * tick


# ---- who would run -----------------------------------------------------------------------------------------------


def share_out(view: View, now: Instant) -> Shares:
    """Go through all jobs in order and count the devices out."""
    running, staying = _running(view, now)
    requests = {bucket.request for bucket in view.buckets} | {s.job.spec.request for s in (*running, *staying)}
    requests |= {view.jobs[job_id].spec.request for job_id in view.claimants}
    quota = Allotment(view, requests)
    for standing in staying:
        quota.force(standing.job.spec.request)
    for job_id in view.claimants:
        quota.force(view.jobs[job_id].spec.request)
    counted = _Counting(view, quota, running)
    if view.rules.policy.between_accounts and view.rules.policy.name is PolicyName.LAS:
        deserved = _deserved(view, running)
        if len(deserved) > 1:
            counted.go(lambda job, need: _within(deserved, job, need))
    counted.go(None)
    granted = counted.granted
    return Shares(counted.waiting, [s for s in running if s.job.id not in granted])


class _Counting:
    """One or two walks through the order. Who was granted devices in the first is not asked in the second."""

    def __init__(self, view: View, quota: Allotment, running: list[Standing]) -> None:
        self._view = view
        self._quota = quota
        self._running = running
        self.granted: set[int] = set()
        self.waiting: list[Job] = []

    def go(self, allowed: Callable[[Job, float], bool] | None) -> None:
        view, queue = self._view, _Jobs(self._view, self.granted)
        place = 0
        ahead = queue.peek()
        while not self._quota.spent and (place < len(self._running) or ahead is not None):
            if ahead is None or (place < len(self._running) and self._running[place].order < ahead[0]):
                job = self._running[place].job
                place += 1
                if job.id not in self.granted and self._grant(job, allowed):
                    self.granted.add(job.id)
                continue
            job = ahead[1]
            if view.array_full(job) or limited(view, job) is not None:
                queue.skip()
            elif self._grant(job, allowed):
                self.granted.add(job.id)
                self.waiting.append(job)
                queue.next()
            else:
                queue.skip()  # the rest of its bucket asks for as much, and there will not be more
            ahead = queue.peek()
        if allowed is not None:
            return
        self.waiting.sort(key=view.order)

    def _grant(self, job: Job, allowed: Callable[[Job, float], bool] | None) -> bool:
        request = job.spec.request
        if allowed is not None and not allowed(job, self._quota.need(request)):
            return False
        return self._quota.grant(request)


class _Jobs:
    """The waiting jobs one by one in order, without taking any out of the view."""

    def __init__(self, view: View, passed: set[int]) -> None:
        self._view = view
        self._passed = set(passed)
        self._heap: list[tuple[Order, Bucket, int]] = []
        for bucket in view.buckets:
            if bucket.request.gpus:
                self._push(bucket, 0)
        heapify(self._heap)

    def _push(self, bucket: Bucket, place: int, onto: Callable[..., None] = list.append) -> None:
        """Put in the first job of the bucket, from this place on, that has not been passed."""
        entries = self._view.buckets[bucket].entries
        while place < len(entries) and entries[place][1] in self._passed:
            place += 1
        if place < len(entries):
            onto(self._heap, (key(self._view, bucket, place), bucket, place))

    def peek(self) -> tuple[Order, Job] | None:
        if not self._heap:
            return None
        order, bucket, place = self._heap[0]
        return order, self._view.jobs[self._view.buckets[bucket].entries[place][1]]

    def next(self) -> None:
        """The job was granted devices: the next of its bucket takes part."""
        _, bucket, place = heappop(self._heap)
        self._push(bucket, place + 1, heappush)

    def skip(self) -> None:
        """Nobody of this bucket can be granted anything any more."""
        heappop(self._heap)


def _running(view: View, now: Instant) -> tuple[list[Standing], list[Standing]]:
    """The running jobs in order: those who may be asked to leave, and those who stay in any case."""
    rank, rules = _RANKS[view.rules.policy.name], view.rules.policy
    movable: list[Standing] = []
    staying: list[Standing] = []
    for job_id, attempt in view.live.items():
        job = view.jobs[job_id]
        if job_id in view.stopping or not job.spec.request.gpus:
            continue
        order = (False, -view.priority(job), True, rank(view, job, now), job_id)
        standing = Standing(order, job, attempt)
        young = rules.calm and (attempt.started is None or now.boot - attempt.started < rules.min_run - 1e-9)
        (staying if young or not _comes_back(job, attempt) else movable).append(standing)
    movable.sort(key=lambda standing: standing.order)
    return movable, staying


def _comes_back(job: Job, attempt: Attempt) -> bool:
    """It has shown that it can be stopped and go on: it watches for requests, or it has saved."""
    spec = job.spec
    may = spec.requeue and (spec.max_requeues is None or job.counted_restarts < spec.max_requeues)
    return may and (attempt.watching or attempt.saved is not None or job.saved is not None)


def _deserved(view: View, running: list[Standing]) -> dict[str, float]:
    """Devices that are each account's part: those of all accounts with jobs, by their shares."""
    accounts = {bucket.account for bucket in view.buckets if bucket.request.gpus}
    accounts |= {view.jobs[job_id].account for job_id in view.live}
    able = sum(slot.able for slot in view.slots.values())
    shares = sum(view.ledger.weight(account) for account in accounts)
    deserved = {account: able * view.ledger.weight(account) / shares for account in accounts}
    movable = {standing.job.id for standing in running}
    for job_id in (*view.live.keys(), *view.claimants):
        job = view.jobs[job_id]
        if job_id not in movable and job_id not in view.stopping and job.account in deserved:
            deserved[job.account] -= job.spec.request.gpus
    return deserved


def _within(deserved: dict[str, float], job: Job, need: float) -> bool:
    """The job stays within its account's part, which it takes from."""
    if deserved[job.account] < need - 1e-9:
        return False
    deserved[job.account] -= need
    return True


# ---- carrying it out ---------------------------------------------------------------------------------------------


def _without_devices(view: View) -> Iterator[Decision]:
    if not view.cpu_waiting:
        return
    queue = Queue(view)
    while (head := queue.pop()) is not None:
        bucket, job = head
        if bucket.request.gpus or view.array_full(job) or limited(view, job) is not None:
            continue
        shares = fit(view, job)
        if shares is None:
            return
        yield Start(job.id, shares)
        queue.push_next(bucket)


def _everybody_fits(view: View) -> bool:
    """More devices are open than all waiting jobs together ask for: nobody has to leave for anybody."""
    wanted = 0
    for bucket, waiting in view.buckets.items():
        wanted += bucket.request.gpus * len(waiting.entries)
        if wanted > view.open_devices or bucket.request.shared:
            return False
    kinds = {view.kind(bucket.request) for bucket in view.buckets if bucket.request.gpus}
    return len(kinds) == 1 and view.pool(next(b.request for b in view.buckets if b.request.gpus)).open >= wanted


def _start_all(view: View, now: Instant) -> Iterator[Decision]:
    queue = Queue(view)
    while (head := queue.pop()) is not None:
        bucket, job = head
        if not bucket.request.gpus or view.array_full(job) or limited(view, job) is not None:
            continue
        shares = fit(view, job, closed(view, job, now))
        if shares is not None:
            yield Start(job.id, shares)
            queue.push_next(bucket)


def _by_count(view: View, now: Instant, shares: Shares) -> Iterator[Decision]:
    """As the published simulators do it: whoever is not granted devices stops, then the others take their places."""
    stops = tuple([standing.attempt for standing in shares.losing])
    if stops:
        yield Evict(stops, shares.waiting[0].id if shares.waiting else stops[0].job_id)
    for job in shares.waiting:
        plan = plan_among(view, job, (), closed(view, job, now))
        if plan is not None:
            yield _start_or_wait(view, job, plan)


def _start_or_wait(view: View, job: Job, plan: Plan) -> Decision:
    """Start on the devices of a plan if they are free, else have them promised."""
    taken = any(not view.slots[uuid].open for uuid in plan.devices)
    if taken or job.spec.request.shared:
        shares = fit(view, job) if job.spec.request.shared else None
        return Start(job.id, shares) if shares is not None else Preempt(job.id, plan)
    return Start(job.id, tuple([Share(uuid) for uuid in plan.devices]))


def _calmly(view: View, now: Instant, shares: Shares, may_ask: bool) -> Iterator[Decision]:
    for job in shares.waiting:
        shut = closed(view, job, now)
        found = fit(view, job, shut)
        if found is not None:
            yield Start(job.id, found)
            continue
        if not may_ask or job.patient:
            continue
        plan = plan_among(view, job, _willing(view, job, shares), shut)
        if plan is not None and _worth_it(view, now, job, plan):
            yield Preempt(job.id, plan)


def _willing(view: View, job: Job, shares: Shares) -> list[Attempt]:
    """Who may be asked to leave for `job`, in the order of asking: the lowest level first, then who has moved least
    often, then who stands last."""
    order = view.order(job)
    found = [
        standing
        for standing in shares.losing
        if standing.order > order
        and standing.job.id not in view.stopping
        and (standing.job.spec.qos == job.spec.qos or may_leave(view, standing.job, job))
        and standing.job.state in (JobState.STARTING, JobState.RUNNING)
    ]
    found.reverse()  # a stable sort keeps this order among equals
    found.sort(key=lambda standing: (view.priority(standing.job), standing.job.preemptions))
    return [standing.attempt for standing in found]


def _worth_it(view: View, now: Instant, job: Job, plan: Plan) -> bool:
    """Whether the devices that the job has earlier are worth more than what moving the victims costs (Lucid, Sia).

    It would otherwise wait until the first of them ends; one of unknown duration is expected to run as long again as
    it has run (what holds for heavy tails).
    """
    if not plan.victims:
        return True
    price, wait = 0.0, float("inf")
    for attempt in plan.victims:
        victim = view.jobs[attempt.job_id]
        if view.priority(victim) < view.priority(job):
            return True
        price += cost(view, victim) * len(attempt.devices)
        left = remaining(view, victim, now)
        ran = victim.ran + running_for(view, victim, now)
        wait = min(wait, left if left is not None else max(ran, view.rules.policy.min_run))
    return wait * job.spec.request.gpus > price
