"""Looks at each decision of a policy before it is carried out, and says if it may not be made.

Where jobs stand is worked out here anew from what the policies promise (docs/policies.md), not asked of them.
"""

from __future__ import annotations

from collections import Counter
from math import sqrt

from playing import Play

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.model.policy import Placement, PolicyName
from gpusched.policy.decisions import Decision, Evict, Preempt, Start
from gpusched.policy.expected import total
from gpusched.policy.fit import fit
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
                self.start(view, decision)
            case Preempt():
                self.preempt(view, now, decision)
            case Evict():
                self.evict(view, now, decision)

    # ---- starts ---------------------------------------------------------------------------------------------

    def start(self, view: View, decision: Start) -> None:
        job = view.jobs[decision.job_id]
        request, uuids = job.spec.request, [share.uuid for share in decision.devices]
        assert job.hold is None and job.dependency_met and not job.state.live
        assert len(set(uuids)) == len(uuids) == request.gpus, f"a gang is whole: {decision}"
        assert not view.array_full(job), f"the %limit of {job.key} is reached"
        for share in decision.devices:
            slot = view.slots[share.uuid]
            assert slot.able or request.shared
            assert slot.kept_for in (None, job.id), f"{share.uuid} is promised to {slot.kept_for}"
            assert request.gpu_type is None or request.gpu_type.lower() in slot.device.name.lower()
            if request.shared:
                assert slot.shared_mib + (share.mem_mib or 0) <= slot.device.total_mib and not slot.exclusive
            else:
                assert not slot.holders, f"{share.uuid} is given to {job.key} and {slot.holders}"
        if not request.shared and not job.earmark and request.gpus:
            self.packed(view, job, uuids)

    def packed(self, view: View, job: Job, uuids: list[str]) -> None:
        """The gang is in as few groups as the placement promises, and in those which leave the others whole."""
        placement = view.rules.policy.placement
        if placement is Placement.COUNT or len({slot.device.total_mib for slot in view.suitable(job.spec.request)}) > 1:
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
        if plan.gives:
            return
        for spared in plan.victims:
            with view.without([*view.departing(job), *(each for each in plan.victims if each is not spared)]):
                assert fit(view, job) is None, f"{spared.key} need not leave for {job.key}"
        with view.without([*view.departing(job), *plan.victims]):
            assert {share.uuid for share in fit(view, job) or ()} == set(plan.devices), "for this nobody need leave"

    def may_be_asked(self, view: View, now: Instant, victim: Job, job: Job) -> None:
        rules = view.rules.policy
        assert victim.id not in view.stopping, f"{victim.key} is asked again"
        below = victim.spec.qos in view.rules.qos[job.spec.qos].preempts
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

    def evict(self, view: View, now: Instant, decision: Evict) -> None:
        """By count: everybody who leaves stands behind somebody who waits and is given devices."""
        job = view.jobs[decision.job_id]
        moved = view.rules.policy.migrate
        for attempt in decision.victims:
            self.seen["victims"] += 1
            victim = view.jobs[attempt.job_id]
            assert victim.id not in view.stopping and self.on_tick(view, now)
            assert can_come_back(victim, attempt), f"{victim.key} has not shown that it can go on"
            behind = (-view.priority(victim), stands(view, now, victim), victim.id) > (
                -view.priority(job), stands(view, now, job), job.id
            ) or view.bucket(job).overdue  # fmt: skip
            assert behind or moved or self.more_than_its_part(view, now, victim, job), f"{victim.key} before {job.key}"


def can_come_back(job: Job, attempt: Attempt) -> bool:
    return attempt.watching or attempt.saved is not None or job.saved is not None


def stands(view: View, now: Instant, job: Job) -> tuple[float, ...]:
    """The place in the order of its level; smaller goes first."""
    rules, attempt = view.rules.policy, view.live.get(job.id)
    running = now.boot - attempt.started if attempt is not None and attempt.started is not None else 0.0
    gpus = job.spec.request.gpus
    service = job.gpu_seconds + running * gpus
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
            comes = queue > 0 and attempt is not None and (service - limit) / gpus < max(rules.tick, SLACK)  # stays, …
            return float(queue), 2.0 if comes else float(attempt is None)  # … but not who comes into it at this moment
        case PolicyName.PREDICTED:
            ran = max(0.0, job.ran - job.lost + running)
            index = view.durations.index(job.owner.user, job.account, job.spec.name, gpus, ran)
            return (index * sqrt(gpus) * (0.25 if attempt is not None else 1.0),)
    return ()
