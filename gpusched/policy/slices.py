"""All jobs of a level in one order share the devices, running or waiting: who comes first runs (srtf, srsf, las,
predicted).

The devices are counted out in that order. Who runs without being granted any is asked to leave, who waits and is
granted some starts. By the calm rules nobody is asked to leave for a job that then would not fit, before `min_run`,
or where moving costs more than it brings; without them jobs are stopped by count alone, as the published simulators
have it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from math import ceil

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.policy import PolicyName
from gpusched.model.state import JobState
from gpusched.policy import moving, ranks, repack
from gpusched.policy.costs import cost
from gpusched.policy.decisions import Decision, Evict, Preempt, Start
from gpusched.policy.expected import remaining, running_for
from gpusched.policy.fit import fit
from gpusched.policy.limits import limited
from gpusched.policy.patience import Overdue
from gpusched.policy.preempt import Plan, may_leave, plan_among
from gpusched.policy.queue import Failed, Queue, anything_to_give
from gpusched.policy.reserve import closed
from gpusched.policy.rights import may_reclaim, over_quota
from gpusched.policy.sharing import Shares, share_out
from gpusched.policy.view import View
from gpusched.policy.waiting import Rank

_TURNS = 60.0  # seconds after which it is looked again whether an account's turn is over
_LOOK_AGAIN = 300.0  # seconds after which predictions, which change with time, are looked at again


def by_time_left(view: View, job: Job) -> Rank:
    return ranks.time_left(view, job, None)


def by_service_left(view: View, job: Job) -> Rank:
    return ranks.service_left(view, job, None)


def by_attained(view: View, job: Job) -> Rank:
    return ranks.attained_service(view, job, None)


def by_prediction(view: View, job: Job) -> Rank:
    return ranks.prediction(view, job, None)


def serve(view: View, now: Instant) -> Iterator[Decision]:
    rules = view.rules.policy
    now = _as_of_tick(view, now)
    on_tick = on_grid(rules.tick, now.boot)
    yield from _without_devices(view)
    if rules.tick_starts and not on_tick:
        return
    if rules.migrate and not rules.calm and on_tick and repack.applies(view):
        if repack.settled(view):
            yield from repack.serve(view, now)
        return
    if _everybody_fits(view) and (yield from _start_all(view, now, on_tick)):
        return
    if not (on_tick or anything_to_give(view)):
        return
    shares = share_out(view, now)
    if rules.calm:
        yield from _calmly(view, now, shares, may_ask=on_tick)
    else:
        yield from _by_count(view, now, shares, may_ask=on_tick)


def on_grid(tick: float, boot: float) -> bool:
    """Decisions about preemption may be made at this moment."""
    return tick <= 0 or abs(boot / tick - round(boot / tick)) * tick < 1e-6


def _as_of_tick(view: View, now: Instant) -> Instant:
    """The tick for which the engine was to be woken, if it has passed: a real clock always wakes it a little late."""
    tick = view.rules.policy.tick
    if tick <= 0 or view.due is None or on_grid(tick, now.boot):
        return now
    latest = now.boot // tick * tick
    return Instant(now.wall, latest) if latest > view.due - 1e-6 else now


def next_look(view: View, now: Instant) -> float | None:
    """When (boot clock) jobs may have to change places although nothing has happened: a limit is reached, a job has
    run for `min_run`, or the tick comes at which it may be decided what could not be decided now."""
    rules = view.rules.policy
    if not any(bucket.request.gpus for bucket in view.buckets):
        return None
    if not on_grid(rules.tick, now.boot):
        return _next_tick(rules.tick, now.boot)
    if not rules.calm and rules.name not in (PolicyName.LAS, PolicyName.PREDICTED):
        return None
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
                moments.append(now.boot + max(0.0, limit - service) / ranks.held(view, job))
        elif rules.name is PolicyName.PREDICTED:
            moments.append(now.boot + _LOOK_AGAIN)
    if rules.name is PolicyName.LAS and rules.between_accounts and _several_accounts(view):
        moments.append(now.boot + max(rules.tick, _TURNS))
    nearest = min((moment for moment in moments if moment > now.boot + 1e-9), default=None)
    return nearest if nearest is None or not rules.tick else ceil(nearest / rules.tick - 1e-9) * rules.tick


def _several_accounts(view: View) -> bool:
    waiting = {bucket.account for bucket in view.buckets}
    return len(waiting) > 1 or any(view.jobs[job_id].account not in waiting for job_id in view.live)


def _next_tick(tick: float, boot: float) -> float:
    return (boot // tick + 1) * tick


def asks_at(view: View, now: Instant) -> Instant:
    """The next moment at which anybody can be asked to leave."""
    tick = view.rules.policy.tick
    return now if on_grid(tick, now.boot) else now.later(_next_tick(tick, now.boot) - now.boot)


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
    if view.reservations:
        return False  # open is not the same for everybody
    wanted = 0
    for bucket, waiting in view.buckets.items():
        wanted += bucket.request.gpus * len(waiting.entries)
        if wanted > view.open_devices or bucket.request.shared:
            return False
    kinds = {view.kind(bucket.request) for bucket in view.buckets if bucket.request.gpus}
    return len(kinds) == 1 and view.pool(next(b.request for b in view.buckets if b.request.gpus)).open >= wanted


def _start_all(view: View, now: Instant, on_tick: bool) -> Generator[Decision, None, bool]:
    """Start everybody. Returns False as soon as one finds no place, because the devices are not close together, for
    whom something can be done: others are moved, or devices are kept for it."""
    queue = Queue(view)
    while (head := queue.pop()) is not None:
        bucket, job = head
        if not bucket.request.gpus or view.array_full(job) or limited(view, job) is not None:
            continue
        shares = fit(view, job, closed(view, job, now))
        if shares is not None:
            yield Start(job.id, shares)
            queue.push_next(bucket)
        elif bucket.overdue or _may_be_helped(view, on_tick):
            return False
    return True


def _may_be_helped(view: View, on_tick: bool) -> bool:
    """By the calm rules there may be room for a job that finds no place although enough devices are open."""
    rules = view.rules.policy
    if not rules.calm:
        return False
    parts = rules.name is PolicyName.LAS and rules.between_accounts and _several_accounts(view)
    return parts or (rules.migrate and on_tick)


def _by_count(view: View, now: Instant, shares: Shares, may_ask: bool) -> Iterator[Decision]:
    """As the published simulators do it: whoever is not granted devices stops, then the others take their places."""
    if may_ask and shares.waiting:
        first = view.order(shares.waiting[0])  # losers before it have lost to processes that are not ours
        stops = tuple([s.attempt for s in shares.losing if s.order > first or shares.entitled])
        if stops:
            yield Evict(stops, shares.waiting[0].id)
    overdue = Overdue(view, now, shares.entitled)
    for job in overdue.among(shares.waiting):
        if view.array_full(job) or limited(view, job) is not None:
            continue
        shut = closed(view, job, now) | overdue.kept_from(job)
        plan = plan_among(view, job, (), now, shut)
        if plan is not None:
            yield _start_or_wait(view, job, plan, shut)
        else:
            overdue.keep_for(job)


def _start_or_wait(view: View, job: Job, plan: Plan, shut: frozenset[str]) -> Decision:
    """Start on the devices of a plan if they are free, else have them promised. `shut`: those it may not have."""
    taken = any(not view.slots[uuid].open for uuid in plan.devices)
    if taken or job.spec.request.shared:
        shares = fit(view, job, shut) if job.spec.request.shared else None
        return Start(job.id, shares) if shares is not None else Preempt(job.id, plan)
    return Start(job.id, tuple([Share(uuid) for uuid in plan.devices]))


def _calmly(view: View, now: Instant, shares: Shares, may_ask: bool) -> Iterator[Decision]:
    overdue = Overdue(view, now, shares.entitled)
    for job in overdue.among(shares.waiting):
        if view.array_full(job) or limited(view, job) is not None:
            continue
        shut = closed(view, job, now) | overdue.kept_from(job)
        found = fit(view, job, shut)
        if found is not None:
            yield Start(job.id, found)
            continue
        if may_ask and not job.patient and not over_quota(view, job):
            plan = plan_among(view, job, willing(view, job, shares), now, shut)
            if plan is not None and worth_it(view, now, job, plan):
                yield Preempt(job.id, plan)
                continue
            if (moves := room_by_moving(view, now, job, overdue)) is not None:
                yield from moving.carry_out(job, *moves)
                continue
        overdue.keep_for(job)
    yield from _leftovers(view, now, overdue)


def _leftovers(view: View, now: Instant, overdue: Overdue) -> Iterator[Decision]:
    """What those who were granted devices could not use, because they need others or more at once, goes to whoever
    fits: he stands behind them and can be asked to leave."""
    queue, failed = Queue(view), Failed(view)
    while (view.open_devices or view.partly_open) and (head := queue.pop()) is not None:
        bucket, job = head
        if not bucket.request.gpus or failed.covers(bucket) or view.array_full(job) or limited(view, job) is not None:
            continue
        shut = closed(view, job, now) | overdue.kept_from(job)
        found = fit(view, job, shut)
        if found is not None:
            yield Start(job.id, found)
            queue.push_next(bucket)
        elif not shut:
            failed.add(bucket)


def willing(view: View, job: Job, shares: Shares) -> Iterator[Attempt]:
    """Who may be asked to leave for `job`, in the order of asking. Most plans need the first few only."""
    order = view.order(job)
    entitled = job.id in shares.entitled  # others have more than their account's part
    level, quotas = view.rules.qos.get(job.spec.qos), view.in_use.quotas
    asks_nobody = level is None or job.patient or over_quota(view, job)
    levels = {job.spec.qos} if asks_nobody or level is None else {job.spec.qos, *level.preempts}
    for standing in shares.in_order_of_asking():
        victim = standing.job
        if not (standing.order > order or (entitled and victim.account != job.account)) or victim.id in view.stopping:
            continue
        may_ask = victim.spec.qos in levels or (quotas and may_leave(view, victim, job))
        if may_ask and victim.state in (JobState.STARTING, JobState.RUNNING):
            yield standing.attempt


def room_by_moving(view: View, now: Instant, job: Job, overdue: Overdue) -> tuple[Plan, list[moving.Move]] | None:
    """How others could be moved for a job that finds no place, if the rules want that and it pays; else None."""
    if not view.rules.policy.migrate:
        return None
    shut = closed(view, job, now) | overdue.kept_from(job)
    found = moving.make_room(view, now, job, shut, overdue.kept_from)
    return found if found is not None and worth_it(view, now, job, found[0]) else None


def worth_it(view: View, now: Instant, job: Job, plan: Plan) -> bool:
    """Whether the devices that the job has earlier are worth more than what moving the victims costs (Lucid, Sia).

    It would otherwise wait until the first of them ends; one of unknown duration is expected to run as long again as
    it has run (what holds for heavy tails).
    """
    if not plan.victims:
        return True
    price, wait = 0.0, float("inf")
    for attempt in plan.victims:
        victim = view.jobs[attempt.job_id]
        if view.priority(victim) < view.priority(job) or may_reclaim(view, victim, job):
            return True
        price += cost(view, victim) * len(attempt.devices)
        left = remaining(view, victim, now)
        ran = victim.ran + running_for(view, victim, now)
        wait = min(wait, left if left is not None else max(ran, view.rules.policy.min_run))
    return wait * job.spec.request.gpus > price
