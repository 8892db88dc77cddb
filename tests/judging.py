"""Looks at each decision of a policy before it is carried out, and says if it may not be made.

Where jobs stand is worked out here anew from what the policies promise (docs/policies.md), not asked of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import sqrt

from playing import Play

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.policy import Placement, PolicyName
from gpusched.policy.decisions import Decision, Evict, Preempt, Resize, Start
from gpusched.policy.expected import total
from gpusched.policy.fit import fit
from gpusched.policy.limits import limited
from gpusched.policy.reserve import closed
from gpusched.policy.view import View

SLACK = 1e-6


class Judge:
    """Given to Play as `watch`. Counts what it has seen, so that a test can tell whether it has seen anything."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, play: Play, view: View, now: Instant, decision: Decision) -> None:
        self.seen[type(decision).__name__] += 1
        match decision:
            case Start():
                self.start(view, now, decision)
            case Preempt():
                self.preempt(view, now, decision)
            case Evict():
                self.evict(view, now, decision)
            case Resize(for_job=int()):
                self.move(view, now, decision)

    # ---- starts ---------------------------------------------------------------------------------------------

    def start(self, view: View, now: Instant, decision: Start) -> None:
        job = view.jobs[decision.job_id]
        request, uuids = job.spec.request, [share.uuid for share in decision.devices]
        assert job.hold is None and job.dependency_met and not job.state.live
        least = job.earmark if request.elastic else ()  # one that is resized goes on with what is kept for it
        assert len(set(uuids)) == len(uuids) == (len(least) or request.gpus), f"a gang is whole: {decision}"
        assert request.within(len(uuids)) == len(uuids)
        assert not view.array_full(job), f"the %limit of {job.key} is reached"
        for share in decision.devices:
            slot = view.slots[share.uuid]
            assert slot.able or request.shared
            assert slot.kept_for in (None, job.id), f"{share.uuid} is promised to {slot.kept_for}"
            assert request.gpu_type is None or request.gpu_type.lower() in slot.device.name.lower()
            for reservation in view.reservations.values():
                others = share.uuid in reservation.devices and request.reservation != reservation.name
                assert not others or not reservation.active(now.wall), f"{share.uuid} is reserved: {reservation.name}"
            if request.shared:
                assert slot.shared_mib + (share.mem_mib or 0) <= slot.device.total_mib and not slot.exclusive
            else:
                assert not slot.holders, f"{share.uuid} is given to {job.key} and {slot.holders}"
        within_limits(view, job, decision.devices)
        if not request.shared and not job.earmark and request.gpus:
            self.packed(view, job, uuids)

    def packed(self, view: View, job: Job, uuids: list[str]) -> None:
        """The gang is in as few groups as the placement promises, and in those which leave the others whole."""
        placement = view.rules.policy.placement
        sizes_of_memory = {slot.device.total_mib for slot in view.suitable(job.spec.request)}
        if placement is Placement.COUNT or len(sizes_of_memory) > 1 or view.reservations:
            return
        suitable = view.suitable(job.spec.request)
        sizes = Counter(slot.device.group for slot in suitable)
        free = Counter(slot.device.group for slot in suitable if slot.open)
        mine = Counter(view.slots[uuid].device.group for uuid in uuids)
        gpus, largest = job.spec.request.gpus, max(sizes.values())
        if placement is Placement.PACK and gpus <= largest:
            assert len(mine) == 1, f"{job.key} is spread over {dict(mine)}"
        if placement is Placement.PACK and gpus > largest:
            rest = [number for group, number in mine.items() if number < largest]
            assert len(rest) <= 1, f"{job.key} has {dict(mine)}: whole groups and the rest in one"
        enough = {group: number for group, number in free.items() if number >= gpus}
        if enough and gpus <= largest:
            assert len(mine) == 1, f"{job.key} has {dict(mine)}, and fits into one of {enough}"
            assert free[next(iter(mine))] == min(enough.values()), f"not the best fit: {dict(mine)} of {enough}"

    # ---- victims --------------------------------------------------------------------------------------------

    def preempt(self, view: View, now: Instant, decision: Preempt) -> None:
        job, plan = view.jobs[decision.job_id], decision.plan
        assert len(set(plan.devices)) == len(plan.devices) == job.spec.request.gpus, f"a gang is whole: {decision}"
        assert all(view.slots[uuid].kept_for in (None, job.id) for uuid in plan.devices), "promised twice"
        for victim in plan.victims:
            self.seen["victims"] += 1
            self.may_be_asked(view, now, view.jobs[victim.job_id], job)
            assert set(victim.uuids) & set(plan.devices), f"{victim.key} leaves nothing to {job.key}"
        shut = closed(view, job, now)
        assert not shut & set(plan.devices), f"{shut} are reserved for others"
        grace = max([view.rules.qos[view.jobs[v.job_id].spec.qos].grace for v in plan.victims], default=0.0)
        late = closed(view, job, now.later(grace)) & set(plan.devices)
        assert not late, f"{late} are reserved for others as soon as the victims have left"
        if plan.gives:
            return
        for spared in plan.victims:
            with view.without([*view.departing(job), *(each for each in plan.victims if each is not spared)]):
                assert fit(view, job, shut) is None, f"{spared.key} need not leave for {job.key}"
        with view.without([*view.departing(job), *plan.victims]):
            found = {share.uuid for share in fit(view, job, shut) or ()}
            free = view.reservations or view.rules.policy.migrate
            assert found == set(plan.devices) or (found and free), f"{plan.devices}, but there would be {found}"

    def may_be_asked(self, view: View, now: Instant, victim: Job, job: Job) -> None:
        rules = view.rules.policy
        assert victim.id not in view.stopping, f"{victim.key} is asked again"
        assert not would_be_over(view, job), f"{job.key} is over the quota of its account"
        below = victim.spec.qos in view.rules.qos[job.spec.qos].preempts or victim.id in running_over(view)
        assert below or victim.spec.qos == job.spec.qos, f"{victim.spec.qos} leaves for {job.spec.qos}"
        if not rules.name.preemptive:
            assert below, "nobody leaves for an equal"
            return
        assert self.on_tick(view, now), f"asked at {now.boot}, between two ticks"
        assert can_come_back(victim, view.live[victim.id]), f"{victim.key} has not shown that it can go on"
        ran = now.boot - (view.live[victim.id].started or 0.0)
        assert not rules.calm or ran >= rules.min_run - SLACK, f"{victim.key} has run for {ran} s"
        if not below:
            behind = (stands(view, now, victim), victim.id) > (stands(view, now, job), job.id)
            behind = behind or view.bucket(job).overdue
            assert behind or self.more_than_its_part(view, now, victim, job), f"{victim.key} ranks above {job.key}"

    @staticmethod
    def on_tick(view: View, now: Instant) -> bool:
        tick = view.rules.policy.tick
        return tick == 0 or abs(now.boot - round(now.boot / tick) * tick) < SLACK

    @staticmethod
    def more_than_its_part(view: View, now: Instant, victim: Job, job: Job) -> bool:
        """Under las: the victim's account has more devices than are its part, or the other account has the turn."""
        rules = view.rules.policy
        if rules.name is not PolicyName.LAS or not rules.between_accounts or victim.account == job.account:
            return False
        waiting = [waits for waits in view.waiting() if waits.spec.request.gpus]
        holding = [view.jobs[job_id] for job_id in view.live if view.jobs[job_id].spec.request.gpus]
        accounts = {one.account for one in (*waiting, *holding)}
        able = sum(slot.able for slot in view.slots.values())
        part = able / len(accounts)  # their shares are equal
        held = sum(len(view.live[one.id].devices) for one in holding if one.account == victim.account)
        held += sum(len(one.earmark) for one in waiting if one.account == victim.account)
        used = {account: view.ledger.served(account, now.wall) for account in accounts}
        turn = job.spec.request.gpus > part and used[job.account] <= min(used.values()) + rules.turn * able
        return held > part + SLACK or turn

    def move(self, view: View, now: Instant, decision: Resize) -> None:
        """Who goes on elsewhere to make room loses nothing: its new devices are free, or being left by others."""
        job, attempt = view.jobs[decision.job_id], view.live[decision.job_id]
        if len(decision.keeps) != len(attempt.devices):
            return  # an elastic job gives devices back: tests/unit/test_engine_elastic.py
        self.seen["moved"] += 1
        assert decision.for_job is not None and view.priority(job) <= view.priority(view.jobs[decision.for_job])
        assert view.rules.policy.migrate and self.on_tick(view, now) and can_come_back(job, attempt)
        ran = now.boot - (attempt.started or 0.0)
        assert ran >= view.rules.policy.min_run - SLACK, f"{job.key} has run for {ran} s"
        assert len(set(decision.keeps)) == len(decision.keeps)
        assert not closed(view, job, now) & set(decision.keeps)
        for uuid in decision.keeps:
            assert view.slots[uuid].kept_for is None and view.suits(view.slots[uuid].device, job.spec.request)

    def evict(self, view: View, now: Instant, decision: Evict) -> None:
        """By count: everybody who leaves stands behind somebody who waits and is given devices; or is moved."""
        job = view.jobs[decision.job_id]
        moved = view.rules.policy.migrate
        assert not view.rules.policy.calm, "by the calm rules each leaves for a job that then fits"
        assert not job.state.live, f"{job.key} runs already"
        assert not view.array_full(job) and limited(view, job) is None, f"{job.key} could not start"
        for attempt in decision.victims:
            self.seen["victims"] += 1
            victim = view.jobs[attempt.job_id]
            assert victim.id not in view.stopping and self.on_tick(view, now)
            assert can_come_back(victim, attempt), f"{victim.key} has not shown that it can go on"
            behind = place(view, now, victim) > place(view, now, job) or self.more_than_its_part(view, now, victim, job)
            assert behind or moved, f"{victim.key} leaves for {job.key}, which stands behind it"


def within_limits(view: View, job: Job, shares: Iterable[Share]) -> None:
    """No hard limit is exceeded if the job has these."""
    rules, mine = view.rules.limits, parts(view, shares)
    for scope, limits in rules.scopes(job):
        others = [view.jobs[i] for i in {*view.live, *view.claimants} - {job.id}]
        others = [other for other in others if scope in dict(rules.scopes(other))]
        held = sum(parts(view, view.live[o.id].devices if o.id in view.live else map(Share, o.earmark)) for o in others)
        assert limits.max_running is None or len(others) < limits.max_running, f"{job.key}: {scope} runs {len(others)}"
        assert limits.max_devices is None or held + mine <= limits.max_devices + SLACK, f"{job.key}: {scope} has {held}"


def place(view: View, now: Instant, job: Job) -> tuple[object, ...]:
    """The place in the whole order: over a quota last, then the level, then patience, then the rank, then the id."""
    waits = job.id not in view.live
    over = (4 if would_be_over(view, job) else 0) if waits else 2 if job.id in running_over(view) else 0
    return over, -view.priority(job), not (waits and view.bucket(job).overdue), stands(view, now, job), job.id


def running_over(view: View) -> set[int]:
    """Of each account's running jobs that stay, the latest started ones, until the rest is within the quota."""
    found: set[int] = set()
    for account in {view.jobs[job_id].account for job_id in view.live}:
        quota = view.rules.limits.quota_of(account)
        live = [a for a in view.live.values() if view.jobs[a.job_id].account == account]
        live = sorted((a for a in live if view.jobs[a.job_id].stop is None), key=lambda a: (a.created, a.job_id))
        used = 0.0
        for attempt in live:
            used += parts(view, attempt.devices)
            if quota is not None and used > quota + SLACK and attempt.devices:
                found.add(attempt.job_id)
    return found


def would_be_over(view: View, job: Job) -> bool:
    """Its account would hold more than its quota if it started now."""
    quota, request = view.rules.limits.quota_of(job.account), job.spec.request
    if quota is None or not request.gpus:
        return False
    others = [other for other in view.jobs.values() if other.account == job.account and other.id != job.id]
    mib = request.gpu_mem_mib if request.shared else None
    held = sum(parts(view, view.live[other.id].devices) for other in others if other.id in view.live)
    held += sum(parts(view, [Share(uuid) for uuid in other.earmark]) for other in others if other.id in view.claimants)
    smallest = min(view.suitable(request), key=lambda slot: slot.device.total_mib)
    return held + request.gpus * parts(view, [Share(smallest.device.uuid, mib)]) > quota + SLACK


def parts(view: View, shares: Iterable[Share]) -> float:
    """Devices; of a shared one the part of its memory."""
    shares = tuple(shares)
    whole = {share.uuid: view.slots[share.uuid].device.total_mib for share in shares}
    return sum(1.0 if share.mem_mib is None else share.mem_mib / whole[share.uuid] for share in shares)


def can_come_back(job: Job, attempt: Attempt) -> bool:
    return attempt.watching or attempt.saved is not None or job.saved is not None


def stands(view: View, now: Instant, job: Job) -> tuple[float, ...]:
    """The place in the order of its level; smaller goes first."""
    rules, attempt = view.rules.policy, view.live.get(job.id)
    running = now.boot - attempt.started if attempt is not None and attempt.started is not None else 0.0
    gpus = job.spec.request.gpus
    held = gpus if attempt is None else len(attempt.devices)  # of an elastic job perhaps more than it asks for at least
    service = job.gpu_seconds + running * held
    known = job.spec.expected if job.spec.expected is not None else job.spec.time_limit
    known = total(view, job) if known is None else known  # as jobs like it have taken
    left = None if known is None else max(0.0, known + job.lost - job.ran - running)
    match rules.name:
        case PolicyName.SRTF:
            return (1.0, service) if left is None else (0.0, left)
        case PolicyName.SRSF:
            return (1.0, service) if left is None else (0.0, left * gpus)
        case PolicyName.LAS:
            queue = sum(limit <= service + SLACK for limit in rules.las_limits)
            if rules.las_slices and queue == len(rules.las_limits):
                while service + SLACK >= rules.las_limits[-1] * 2 ** (queue - len(rules.las_limits) + 1):
                    queue += 1
            if not rules.running_first:
                return float(queue), float(job.id)
            limit = rules.las_limits[queue - 1] if queue <= len(rules.las_limits) else service  # of one queue who runs
            comes = queue > 0 and attempt is not None and (service - limit) / held < max(rules.tick, SLACK)  # stays, …
            return float(queue), 2.0 if comes else float(attempt is None)  # … but not who comes into it at this moment
        case PolicyName.PREDICTED:
            ran = max(0.0, job.ran - job.lost + running)
            index = view.durations.index(job.owner.user, job.account, job.spec.name, gpus, ran)
            return (index * sqrt(gpus) * (0.25 if attempt is not None else 1.0),)
    return ()
