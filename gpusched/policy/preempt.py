"""Which running jobs would have to leave for a more important one.

After Kueue's preemption (remove candidates in order until the newcomer fits, then give back every one that turns
out not to be needed). What elastic jobs have above their least number is asked for before whole jobs are.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.elastic import Give, Offer, give, offers
from gpusched.policy.fit import fit
from gpusched.policy.holdings import Lifted
from gpusched.policy.reserve import closed as reserved_from
from gpusched.policy.rights import guaranteed, may_reclaim, over_quota
from gpusched.policy.view import View


@dataclass(frozen=True, slots=True)
class Plan:
    """The devices that the preemptor will get, the attempts that must leave them, and the elastic ones that go on with
    fewer."""

    devices: tuple[str, ...]
    victims: tuple[Attempt, ...]
    gives: tuple[Give, ...] = ()


def candidates(view: View, job: Job) -> list[Attempt]:
    """Attempts that may be asked to leave for `job`, in the order in which they would be taken:

    1. those over the quota of their account first,
    2. then the lowest level,
    3. then the youngest attempt (it has the least work to lose),
    4. then the highest job id.
    """
    kind = view.kind(job.spec.request)
    may = (a for job_id, a in view.live.items() if may_leave(view, view.jobs[job_id], job))
    found = list(_of_use(view, job, may, kind))

    def order(attempt: Attempt) -> tuple[int, int, float, int]:
        victim = view.jobs[attempt.job_id]
        return -view.standing(victim), view.priority(victim), -attempt.created, -attempt.job_id

    found.sort(key=order)
    return found


def _of_use(
    view: View, job: Job, attempts: Iterable[Attempt], kind: Container[str] | None = None
) -> Iterator[Attempt]:
    """Those attempts of whose devices (of this kind) one is kept for nobody else: their leaving can be of use."""
    slots, mine = view.slots, job.id
    for attempt in attempts:
        for share in attempt.held:
            slot = slots.get(share.uuid)
            if slot is None or not ((kept := slot.kept_for) is None or kept == mine):
                continue
            if kind is None or share.uuid in kind:
                yield attempt
                break


def may_leave(view: View, victim: Job, job: Job) -> bool:
    """`victim` runs, is not being stopped already, and is of a level that `job`'s level may preempt; or it runs over
    the quota of its account, and `job` is within its own.

    A job whose owner gave its devices back does not take them from those who got them, and a job over its account's
    quota takes nobody's.
    """
    running = victim.state in (JobState.STARTING, JobState.RUNNING)
    if not running or job.patient or over_quota(view, job):
        return False
    return view.rules.may_preempt(job.spec.qos, victim.spec.qos) or may_reclaim(view, victim, job)


def plan_preemption(view: View, job: Job, now: Instant, closed: Container[str] = frozenset()) -> Plan | None:
    """The smallest set of victims of lower levels, in the stated order, whose leaving lets `job` start; or None.

    closed: devices that this job may not use. Elastic jobs of its own and of lower levels give back what they have
    above their least number, before any whole job is asked.
    Where the devices of attempts that are leaving anyway will be enough, the plan has no victims: those devices are
    just promised to the job, so that the next preemptor does not count on them too.
    """
    level = view.rules.qos.get(job.spec.qos)
    if job.spec.request.gpus == 0 or level is None or over_quota(view, job):
        return None
    reclaims = bool(view.in_use.exceeding) and guaranteed(view, job)
    if not (level.preempts or reclaims):
        return plan_among(view, job, (), now, closed) if view.elastic and offers(view, job, now) else None
    somebody = reclaims or any(view.running[victim] for victim in level.preempts)
    return plan_among(view, job, candidates(view, job) if somebody else (), now, closed)


def plan_among(
    view: View, job: Job, willing: Iterable[Attempt], now: Instant, closed: Container[str] = frozenset()
) -> Plan | None:
    """The smallest set of victims among `willing`, taken in this order, whose leaving lets `job` start; or None.

    Before them all, elastic jobs are asked for what they can spare. Devices that the job could have now, but not any
    more when the others have left, because a reservation begins, are no use: nobody would leave for them in vain.
    """
    if not view.reservations:
        return _plan_now(view, job, willing, now, closed)
    among, shut = list(willing), closed
    while (plan := _plan_now(view, job, among, now, shut)) is not None:
        late = reserved_from(view, job, now.later(_left_in(view, plan, now)))
        if late.isdisjoint(plan.devices):
            return plan
        shut = late.union([uuid for uuid in view.slots if uuid in shut])
    return None


def _left_in(view: View, plan: Plan, now: Instant) -> float:
    """Seconds in which all have left its devices, however long they take to save."""
    asked = {attempt.job_id for attempt in (*plan.victims, *(each.attempt for each in plan.gives))}
    most = 0.0
    for job_id in {key.job_id for uuid in plan.devices for key in view.slots[uuid].holders}:
        job = view.jobs.get(job_id)
        if job is None:
            continue  # it has ended, and is about to be seen gone
        if job.stop is not None:
            most = max(most, job.stop.deadline - now.boot)
        elif job_id in asked:
            most = max(most, grace(view.rules, job))
    return most


def grace(rules: Rules, job: Job) -> float:
    """Seconds that a job has between the request to leave and the kill."""
    level = rules.qos.get(job.spec.qos)
    return job.spec.grace if job.spec.grace is not None else level.grace if level is not None else 60.0


def _plan_now(
    view: View, job: Job, willing: Iterable[Attempt], now: Instant, closed: Container[str]
) -> Plan | None:
    lifted: Lifted = []
    try:
        for attempt in _of_use(view, job, view.departing(job)):
            view.lift(attempt, lifted)
        shares = fit(view, job, closed)
        if shares is not None:
            return Plan(tuple([share.uuid for share in shares]), ())
        whole = (Offer(attempt, attempt.uuids) for attempt in willing)
        chosen = _needed(view, job, chain(offers(view, job, now), whole), closed)
        if chosen is None:
            return None
        shares = _fit_without(view, job, chosen, closed)
        assert shares is not None
        return _plan(view, job, shares, chosen, closed)
    finally:
        view.put_back(lifted)


def _needed(view: View, job: Job, ask: Iterable[Offer], closed: Container[str]) -> list[Offer] | None:
    """The first of these offers, in this order, with which the job fits, without those that turn out not to be needed;
    None if it does not fit with all of them."""
    chosen: list[tuple[Offer, Lifted]] = []
    try:
        for offer in ask:
            chosen.append((offer, []))
            view.lift(offer.attempt, chosen[-1][1], offer.uuids)
            if fit(view, job, closed) is not None:
                break
        else:
            return None
        for each in chosen[-2::-1]:  # the last one was needed: without it the job did not fit
            offer, lifted = each
            view.put_back(lifted)
            rest = [other for other in chosen if other is not each]
            for other, its in rest:  # a part of an attempt and the whole of it may have been offered
                if other.attempt is offer.attempt:
                    view.lift(other.attempt, its, other.uuids)
            if fit(view, job, closed) is not None:
                chosen = rest
            else:
                view.lift(offer.attempt, lifted, offer.uuids)
        return [offer for offer, _ in chosen]
    finally:
        for _, lifted in chosen:
            view.put_back(lifted)


def _fit_without(
    view: View, job: Job, asked: list[Offer], closed: Container[str]
) -> tuple[Share, ...] | None:
    lifted: Lifted = []
    try:
        for offer in asked:
            view.lift(offer.attempt, lifted, offer.uuids)
        return fit(view, job, closed)
    finally:
        view.put_back(lifted)


def _plan(view: View, job: Job, shares: tuple[Share, ...], chosen: list[Offer], closed: Container[str]) -> Plan:
    """The plan on these devices, or on as many others that elastic jobs would rather give."""
    for place, offer in enumerate(chosen):
        taken = sum(share.uuid in offer.uuids for share in shares)
        rather = [*chosen[:place], Offer(offer.attempt, offer.uuids[:taken]), *chosen[place + 1 :]]
        if not offer.whole and (found := _fit_without(view, job, rather, closed)) is not None:
            chosen, shares = rather, found
    devices = tuple([share.uuid for share in shares])
    victims = tuple([offer.attempt for offer in chosen if offer.whole])
    gives = [give(view, offer.attempt, devices) for offer in chosen if not offer.whole]
    return Plan(devices, victims, tuple([each for each in gives if len(each.keeps) < len(each.attempt.devices)]))
