"""Elastic jobs grow: onto devices that nobody who waits could use, or at the expense of one another.

Devices are counted out one step at a time to the job whose step gets shorter by the largest part per device, measured
in steps on one device (Optimus, EuroSys'18, gives by largest marginal gain; Pollux, OSDI'21, compares speed-ups, so
that jobs of different lengths count alike). A job that starts in this very cycle takes devices for nothing. One that
runs must be moved: it grows only if what it gains in the time that it still needs is more than its move costs, if it
has run for `resize_interval` on its present number, and if it has shown that it can save and go on.

Where nothing is free, a job may take devices over from one of its own level that has much more: if the two together
then lose less, and both their moves are paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.state import JobState
from gpusched.policy.coming_back import comes_back, has_shown
from gpusched.policy.costs import cost
from gpusched.policy.decisions import Decision, Resize, Widen
from gpusched.policy.elastic import give, settled, settled_at
from gpusched.policy.expected import remaining, running_for
from gpusched.policy.fit import fit, possible
from gpusched.policy.limits import headroom, limited
from gpusched.policy.reserve import closed
from gpusched.policy.speedup import speedup, step_seconds
from gpusched.policy.view import View

WORTH = 0.01  # the part by which each device must shorten a step: less cannot be told from noise
LEAST_GAIN = 1.05  # times as quick as before, for a job to be moved
EXIT_SAVED = 85  # what a job exits with that has saved; verdict.py has the same


@dataclass(slots=True)
class Grower:
    """A job that could use more devices. `target`: how many it is to have; `extra`: those that it is to get."""

    job: Job
    attempt: Attempt
    fresh: bool  # it has just been given its devices and is not launched yet
    open: list[str]
    most: int  # devices that it may have
    target: int
    extra: list[str] = field(default_factory=list)

    @property
    def now(self) -> int:
        return len(self.attempt.devices)


def decide(view: View, now: Instant) -> Iterator[Decision]:
    """Who gets more devices, when everybody who waits has been served."""
    wanted = _wanted(view, now)
    if view.open_devices:
        growers = who_grows(view, now, _growers(view, now, wanted))
        for place, grower in enumerate(growers):
            others = {uuid for other in growers[place + 1 :] for uuid in other.extra}
            yield from _grown(view, now, grower, wanted | others)
    if not wanted:
        yield from _taken_over(view, now)


def next_look(view: View, now: Instant) -> float | None:
    """When (boot clock) the passing of time alone can have an elastic job moved."""
    moments = []
    for job_id in view.elastic - view.stopping:
        job, attempt = view.jobs[job_id], view.live.get(job_id)
        if attempt is None or attempt.started is None or not comes_back(job):
            continue
        request, held = job.spec.request, len(attempt.devices)
        ripe = settled_at(view, attempt.started)
        if ripe > now.boot and view.buckets and held > request.gpus:
            moments.append(ripe)  # for those who wait
        elif held < request.most and (view.open_devices or len(view.elastic) > 1):
            interval = max(view.rules.policy.resize_interval, 60.0)  # later it may need longer than was thought
            moments.append(ripe if ripe > now.boot else now.boot + interval)
    return min(moments, default=None)


# ---- who could ---------------------------------------------------------------------------------------------------


def _wanted(view: View, now: Instant) -> frozenset[str]:
    """The devices that a waiting job could use, though perhaps not at this moment."""
    found: set[str] = set()
    for bucket in view.buckets:
        job = view.head(bucket)
        kind = view.kind(bucket.request)
        if bucket.request.gpus and not found.issuperset(kind) and _could_start(view, job):
            found |= kind - closed(view, job, now)
    return frozenset(found)


def _could_start(view: View, job: Job) -> bool:
    return not view.array_full(job) and limited(view, job) is None and possible(view, job.spec.request)


def _growers(view: View, now: Instant, wanted: frozenset[str]) -> list[Grower]:
    found = []
    for job_id in sorted(view.elastic - view.stopping):
        job, attempt = view.jobs[job_id], view.live.get(job_id)
        if attempt is None or len(attempt.devices) >= job.spec.request.most:
            continue
        fresh = job_id in view.fresh
        if not fresh and not _may_grow(view, job, attempt, now):
            continue
        shut = wanted | closed(view, job, now)
        free = [s.device.uuid for s in view.suitable(job.spec.request) if s.open and s.device.uuid not in shut]
        if free and most(view, job) > len(attempt.devices):
            found.append(Grower(job, attempt, fresh, free, most(view, job), len(attempt.devices)))
    return found


def most(view: View, job: Job) -> int:
    """The most devices that the job can use and that the limits let it have."""
    room = headroom(view, job)
    return job.spec.request.most if room is None else min(room, job.spec.request.most)


def _may_grow(view: View, job: Job, attempt: Attempt, now: Instant) -> bool:
    return job.state is JobState.RUNNING and comes_back(job) and settled(view, attempt, now) and can_save(job, attempt)


def can_save(job: Job, attempt: Attempt) -> bool:
    """It has shown that it can save and go on: it polls for requests, it has saved, or it left with the exit code
    that says so."""
    left_well = job.outcome is not None and job.outcome.code == EXIT_SAVED
    return has_shown(job, attempt) or left_well


# ---- how much ----------------------------------------------------------------------------------------------------


def who_grows(view: View, now: Instant, growers: list[Grower]) -> list[Grower]:
    """Those of the growers that get something, with their targets: who would not gain enough by its move is left out
    and the devices are counted out anew among the others."""
    while True:
        _count_out(view, growers)
        growing = [grower for grower in growers if grower.target > grower.now]
        losing = [grower for grower in growing if not grower.fresh and not _pays(view, now, grower.job, grower.target)]
        if not losing:
            return growing
        worst = min(losing, key=lambda g: (speedup(g.job.speeds, g.now, g.target), -g.job.id))
        growers = [grower for grower in growers if grower is not worst]


def _count_out(view: View, growers: list[Grower]) -> None:
    taken: set[str] = set()
    for grower in growers:
        grower.target, grower.extra = grower.now, []
    while True:
        steps = []
        for grower in growers:
            free = sum(uuid not in taken for uuid in grower.open)
            for target in _targets(grower.job, grower.target, min(grower.target + free, grower.most)):
                gain = shorter(grower.job, grower.target, target)
                if gain >= WORTH:
                    steps.append((view.priority(grower.job), gain, -grower.job.id, target, grower))
        if not steps:
            return
        *_, target, grower = max(steps, key=lambda step: step[:4])
        rivals = {uuid: sum(uuid in other.open for other in growers) for uuid in grower.open if uuid not in taken}
        extra = sorted(rivals, key=rivals.__getitem__)[: target - grower.target]  # stable: then by index
        taken.update(extra)
        grower.extra += extra
        grower.target = target


def _targets(job: Job, held: int, most: int) -> list[int]:
    """Numbers of devices worth looking at: one step more, those that were measured, and all there are."""
    request = job.spec.request
    top = request.within(most)
    if top <= held:
        return []
    step = next(count for count in range(held + 1, top + 1) if request.within(count) == count)
    known = {n for n in (speed.gpus for speed in job.speeds) if held < n <= top and request.within(n) == n}
    return sorted({step, top, *known})


def shorter(job: Job, before: int, after: int) -> float:
    """By what part of a step on one device each further device shortens a step."""
    once = step_seconds(job.speeds, 1)
    return (step_seconds(job.speeds, before) - step_seconds(job.speeds, after)) / once / (after - before)


def _pays(view: View, now: Instant, job: Job, target: int, price: float | None = None) -> bool:
    """What the job gains in the time it still needs is more than being moved costs (seconds)."""
    held = len(view.live[job.id].devices)
    factor = speedup(job.speeds, held, target)
    left = seconds_left(view, job, now)
    return factor >= LEAST_GAIN and left * (1 - 1 / factor) > (cost(view, job) if price is None else price)


def seconds_left(view: View, job: Job, now: Instant) -> float:
    """Seconds that a running job still needs on its present devices: by its own count of steps, else as expected, else
    as long again as it has run (what holds for heavy tails: Harchol-Balter and Downey, 1997)."""
    attempt = view.live[job.id]
    pace = attempt.pace
    if pace is not None and pace.total is not None:
        rate = 1 / step_seconds(job.speeds, len(attempt.devices)) if job.speeds else pace.rate
        if rate:
            return max(0.0, pace.total - pace.step) / rate
    left = remaining(view, job, now)
    return left if left is not None else job.ran + running_for(view, job, now)


# ---- carrying it out ---------------------------------------------------------------------------------------------


def _grown(view: View, now: Instant, grower: Grower, shut: frozenset[str] | set[str]) -> Iterator[Decision]:
    """The grower on its own and the open devices, as close together as they can be."""
    job, attempt = view.jobs[grower.job.id], view.live[grower.job.id]
    held = len(attempt.devices)
    avoid = (frozenset(shut) | closed(view, job, now)) - set(attempt.uuids)
    for target in range(min(grower.target, most(view, job)), held, -1):
        if job.spec.request.within(target) != target:
            continue
        if not grower.fresh and not _pays(view, now, job, target):
            return
        with view.without([attempt]):
            shares = fit(view, job, avoid, target)
        if shares is not None:
            yield _moved(job, shares, held, grower.fresh, seconds_left(view, job, now))
            return


def _moved(job: Job, shares: tuple[Share, ...], held: int, fresh: bool, left: float) -> Decision:
    if fresh:
        return Widen(job.id, shares)
    return Resize(job.id, tuple([share.uuid for share in shares]), seconds_left=left)


def _taken_over(view: View, now: Instant) -> Iterator[Decision]:
    """One job takes devices over from another of its level, if the two are then better off; the best such pair."""
    best: tuple[float, int, int, int, list[str]] | None = None
    ripe = [job_id for job_id in sorted(view.elastic - view.stopping) if _ripe(view, job_id, now)]
    for taker_id in ripe:
        for giver_id in ripe:
            found = _exchange(view, now, taker_id, giver_id) if taker_id != giver_id else None
            if found is not None and (best is None or found[0] > best[0]):
                best = (found[0], taker_id, giver_id, found[1], found[2])
    if best is None:
        return
    _, taker_id, giver_id, _, devices = best
    taker, giver = view.jobs[taker_id], view.live[giver_id]
    keeps = give(view, giver, devices).keeps
    left = seconds_left(view, taker, now)
    yield Resize(giver_id, keeps, for_job=taker_id, seconds_left=seconds_left(view, view.jobs[giver_id], now))
    yield Resize(taker_id, (*view.live[taker_id].uuids, *devices), seconds_left=left)


def _ripe(view: View, job_id: int, now: Instant) -> bool:
    attempt = view.live.get(job_id)
    return attempt is not None and _may_grow(view, view.jobs[job_id], attempt, now)


def _exchange(view: View, now: Instant, taker_id: int, giver_id: int) -> tuple[float, int, list[str]] | None:
    """What both together gain (in steps on one device), how many devices move, and which; None: it does not pay."""
    taker, giver = view.jobs[taker_id], view.jobs[giver_id]
    if view.priority(taker) != view.priority(giver):
        return None
    mine, theirs = len(view.live[taker_id].devices), view.live[giver_id]
    shut = closed(view, taker, now)
    kind = view.kind(taker.spec.request)
    useful = [u for u in reversed(theirs.uuids) if u in kind and u not in shut and view.slots[u].able]
    best: tuple[float, int, list[str]] | None = None
    spare = min(len(theirs.uuids) - giver.spec.request.gpus, most(view, taker) - mine)
    for count in range(1, min(len(useful), spare) + 1):
        left = giver.spec.request.within(len(theirs.uuids) - count)
        if taker.spec.request.within(mine + count) != mine + count or left != len(theirs.uuids) - count:
            continue
        gain = shorter(taker, mine, mine + count) * count
        loss = shorter(giver, left, len(theirs.uuids)) * count
        price = cost(view, taker) + cost(view, giver)
        better = gain - loss >= WORTH * count and (best is None or gain - loss > best[0])
        if better and _pays(view, now, taker, mine + count, price):
            best = (gain - loss, count, useful[:count])
    return best
