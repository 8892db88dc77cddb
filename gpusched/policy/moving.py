"""Room for a gang by moving running jobs to other devices (`migrate`), by the calm rules.

Devices enough may be free for a gang that waits, but not close together, or not of its kind. Those who are in the way
then save, leave and go on elsewhere: on devices that are free, or that others leave in the same way, and that are kept
for them meanwhile. So nobody loses its devices for a job that stands behind it. Nobody is moved before `min_run`, who
has not shown that it can go on, for a lower level, or if moving costs more than it brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.model.policy import Placement
from gpusched.policy.costs import cost
from gpusched.policy.decisions import Decision, Preempt, Resize
from gpusched.policy.fit import fit
from gpusched.policy.holdings import Lifted
from gpusched.policy.preempt import Plan, plan_among
from gpusched.policy.reserve import closed
from gpusched.policy.sharing import standings
from gpusched.policy.view import View

Move = tuple[Attempt, tuple[str, ...]]  # who goes on where


def make_room(
    view: View, now: Instant, job: Job, shut: frozenset[str], kept_from: Callable[[Job], frozenset[str]]
) -> tuple[Plan, list[Move]] | None:
    """The cheapest way to have `job` start by moving others, or None: its devices, with those who hold them now as
    victims, and where each of these goes on.

    shut: devices that the job may not have. kept_from: which are kept for others who wait before somebody else.
    """
    if job.spec.request.shared:
        return None
    movable = [s.attempt for s in standings(view, now)[0] if _may_move(view, s.job, job)]
    if not movable:
        return None
    found: list[tuple[float, int, Plan, list[Move]]] = []
    for number, (outside, inside) in enumerate(_corners(view, job, movable)):
        plan = plan_among(view, job, inside, now, shut | outside)
        if plan is None or not plan.victims or plan.gives:
            continue
        moves = _elsewhere(view, now, plan, kept_from)
        if moves is not None:
            found.append((price(view, plan.victims), number, plan, moves))
    return min(found, key=lambda each: each[:2])[2:] if found else None


def carry_out(job: Job, plan: Plan, moves: Iterable[Move]) -> Iterator[Decision]:
    """Each goes on where there is a place for it; what they leave is promised to the job."""
    for attempt, uuids in moves:
        yield Resize(attempt.job_id, uuids, for_job=job.id)
    yield Preempt(job.id, Plan(plan.devices, ()))


def price(view: View, attempts: Iterable[Attempt]) -> float:
    """Device-seconds that moving these costs."""
    return sum(cost(view, view.jobs[attempt.job_id]) * len(attempt.devices) for attempt in attempts)


def _may_move(view: View, other: Job, job: Job) -> bool:
    return not other.spec.request.shared and view.priority(other) <= view.priority(job)


def _corners(view: View, job: Job, movable: list[Attempt]) -> Iterator[tuple[frozenset[str], list[Attempt]]]:
    """Where the gang could go: the devices that it then does not want, and who could be moved out of the others, the
    cheapest first. A gang that has to be in one group can go to each that is large enough."""
    pool, request = view.pool(job.spec.request), job.spec.request
    kind = view.kind(request)
    by_price = sorted(movable, key=lambda attempt: (price(view, [attempt]), attempt.job_id))
    if view.rules.policy.placement is not Placement.PACK or request.gpus > pool.largest:
        yield frozenset(), by_price
        return
    groups: dict[int, set[str]] = {}
    for uuid in kind:
        groups.setdefault(pool.group_of(uuid), set()).add(uuid)
    for group in sorted(groups):
        if len(groups[group]) >= request.gpus:
            yield kind - groups[group], [a for a in by_price if not groups[group].isdisjoint(a.uuids)]


def _elsewhere(
    view: View, now: Instant, plan: Plan, kept_from: Callable[[Job], frozenset[str]]
) -> list[Move] | None:
    """Where each of those who leave these devices goes on, on as many as before; None if not all find a place."""
    found: list[Move] = []
    lifted: Lifted = []
    guarded: list[str] = []
    try:
        for attempt in plan.victims:
            view.lift(attempt, lifted)
        _guard(view, plan.devices, guarded)
        for attempt in sorted(plan.victims, key=lambda a: (-len(a.devices), a.job_id)):
            job = view.jobs[attempt.job_id]
            shares = fit(view, job, closed(view, job, now) | kept_from(job), len(attempt.devices))
            if shares is None:
                return None
            found.append((attempt, tuple([share.uuid for share in shares])))
            _guard(view, found[-1][1], guarded)
    finally:
        view.unguard(guarded)
        view.put_back(lifted)
    return found


def _guard(view: View, uuids: tuple[str, ...], guarded: list[str]) -> None:
    view.guard(uuids)
    guarded += uuids
