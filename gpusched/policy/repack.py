"""All devices given out anew, in order and first fit: running jobs are moved to make room for gangs (`migrate`).

It is decided who would run if the machine were emptied. Whoever can stay where it is stays; only where the others
then find no place are running jobs moved, by a stop and a start elsewhere. As Tiresias' and Muri's simulators do it,
where moving costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.policy import Placement
from gpusched.policy import fit as fitting
from gpusched.policy.decisions import Decision, Evict, Preempt, Start
from gpusched.policy.fit import fit
from gpusched.policy.holdings import Lifted
from gpusched.policy.limits import limited, need
from gpusched.policy.pool import Pool
from gpusched.policy.preempt import Plan
from gpusched.policy.sharing import InOrder, Standing, array_of, standings
from gpusched.policy.view import View

Place = list[tuple[int, int]]  # (group, devices in it)


def applies(view: View) -> bool:
    """Groups matter, and all jobs want whole devices of one kind: only then is there anything to gain by moving.

    Not while there are reservations: then not every device is everybody's.
    """
    if view.rules.policy.placement is not Placement.PACK or view.reservations:
        return False
    requests = {bucket.request for bucket in view.buckets if bucket.request.gpus}
    if not requests:
        return False
    requests |= {view.jobs[job_id].spec.request for job_id in view.live} | {
        view.jobs[job_id].spec.request for job_id in view.claimants
    }
    kinds = {view.kind(request) for request in requests if request.gpus}
    return len(kinds) == 1 and not any(request.shared or request.elastic for request in requests)


def settled(view: View) -> bool:
    """Nobody is on the way in or out: only then is it known what can be moved."""
    if view.stopping or view.leaving or view.claimants:
        return False
    return all(attempt.started is not None for attempt in view.live.values())


def serve(view: View, now: Instant) -> Iterator[Decision]:
    pool = view.pool(next(bucket.request for bucket in view.buckets if bucket.request.gpus))
    running, staying = standings(view, now)
    places, waiting = _first_fit(view, pool, running, staying)
    losing = [s.attempt for s in running if s.job.id not in places]
    found = _beside(view, waiting, losing)
    if found is not None:
        yield from _carry_out(view, waiting, found, losing)
        return
    moving = [s.attempt for s in running if s.job.id in places and _groups(pool, s.attempt) != sorted(places[s.job.id])]
    if moving or losing:
        yield Evict((*losing, *moving), waiting[0].id)
        return  # when they have left, this is decided again
    for job in waiting:
        uuids = pool.pick_in(places[job.id])
        if uuids is not None:
            yield Start(job.id, tuple([Share(uuid) for uuid in uuids]))


def _first_fit(
    view: View, pool: Pool, running: list[Standing], staying: list[Standing]
) -> tuple[dict[int, Place], list[Job]]:
    """Who would run where, and who of them waits, in order. Where one past its patience finds no place, because of jobs
    that cannot be moved, nobody behind it starts."""
    free = list(pool.able_in)
    for standing in staying:
        for share in standing.attempt.devices:
            free[pool.group_of(share.uuid)] -= 1
    places: dict[int, Place] = {}
    waiting: list[Job] = []
    arrays: Counter[int] = Counter()  # elements that are given places, by array
    kept = False
    left, line = sum(free), InOrder(view, running, set())
    while left > 0 and (found := line.next()) is not None:
        job, moving, order = found
        if moving is None and (kept or view.array_full(job, arrays[array_of(job)]) or limited(view, job) is not None):
            line.refuse()
            continue
        place = None if job.spec.request.gpus > left else _place(free, pool, job.spec.request.gpus)
        if place is None:
            kept = kept or (moving is None and not order[2] and fitting.possible(view, job.spec.request))
            line.refuse()
            continue
        for group, number in place:
            free[group] -= number
            left -= number
        places[job.id] = place
        if moving is None:
            waiting.append(job)
            arrays[array_of(job)] += 1
            if view.in_use.active:
                view.in_use.assume(job, need(view, job))
    for job in waiting:
        view.in_use.put(job, None, promised=False)
    return places, waiting


def _place(free: list[int], pool: Pool, count: int) -> Place | None:
    if count <= pool.largest:
        for group, number in enumerate(free):
            if number >= count:
                return [(group, count)]
        return None
    full, rest = divmod(count, pool.largest)
    whole = [group for group, number in enumerate(free) if number == pool.largest][:full]
    if len(whole) < full:
        return None
    place = [(group, pool.largest) for group in whole]
    if rest:
        last = next((g for g, number in enumerate(free) if number >= rest and g not in whole), None)
        if last is None:
            return None
        place.append((last, rest))
    return place


def _groups(pool: Pool, attempt: Attempt) -> Place:
    counts: dict[int, int] = {}
    for share in attempt.devices:
        group = pool.group_of(share.uuid)
        counts[group] = counts.get(group, 0) + 1
    return sorted(counts.items())


def _beside(view: View, waiting: list[Job], losing: list[Attempt]) -> list[tuple[str, ...]] | None:
    """Devices for all who wait, if those who lose theirs leave and nobody else moves; None if there is no way."""
    found: list[tuple[str, ...]] = []
    lifted: Lifted = []
    guarded: list[str] = []
    try:
        for attempt in losing:
            view.lift(attempt, lifted)
        for job in waiting:
            shares = fit(view, job)
            if shares is None:
                return None
            found.append(tuple([share.uuid for share in shares]))
            view.guard(found[-1])
            guarded += found[-1]
    finally:
        view.unguard(guarded)
        view.put_back(lifted)
    return found


def _carry_out(
    view: View, waiting: list[Job], found: list[tuple[str, ...]], losing: list[Attempt]
) -> Iterator[Decision]:
    if losing and waiting:
        yield Evict(tuple(losing), waiting[0].id)
    for job, uuids in zip(waiting, found, strict=True):
        if all(view.slots[uuid].open for uuid in uuids):
            yield Start(job.id, tuple([Share(uuid) for uuid in uuids]))
        else:
            yield Preempt(job.id, Plan(uuids, ()))
