"""Which running jobs could be asked to leave for a waiting one, and why (not), under the policy in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.model.policy import PolicyName
from gpusched.model.state import JobState
from gpusched.model.units import format_duration
from gpusched.policy.costs import cost
from gpusched.policy.elastic import offers
from gpusched.policy.explain_ahead import by_rank
from gpusched.policy.patience import Overdue
from gpusched.policy.preempt import Plan, may_leave, plan_among
from gpusched.policy.reserve import closed
from gpusched.policy.rights import may_reclaim, over_quota, quota_text
from gpusched.policy.sharing import Shares, can_move, share_out, standings
from gpusched.policy.slices import asks_at, room_by_moving, willing, worth_it
from gpusched.policy.view import View


@dataclass(frozen=True, slots=True)
class VictimVerdict:
    job_id: int
    preemptible: bool
    text: str


def victims(view: View, job: Job, now: Instant) -> tuple[VictimVerdict, ...]:
    """Every running job that holds a device it could use: could it be preempted for this one, and why (not).

    An elastic one may instead give back what it has above its least number.
    """
    if job.spec.request.gpus == 0:
        return ()
    suitable = {slot.device.uuid for slot in view.suitable(job.spec.request)}
    lent = {offer.attempt.job_id: len(offer.uuids) for offer in offers(view, job, now)}
    judge: Callable[[Job, Attempt], tuple[bool, str]] | None = None
    verdicts = []
    for job_id in sorted(view.live):
        other, attempt = view.jobs[job_id], view.live[job_id]
        if suitable.isdisjoint(attempt.uuids):
            continue  # it has nothing that the job could wait for
        if other.state is JobState.STOPPING and other.stop is not None:
            verdict = False, f"is leaving already: {other.stop.phrase()}"
        elif job.patient:
            verdict = False, f"job {job.key} gave its devices back and asks nobody to leave until it has run again"
        elif over_quota(view, job):
            verdict = False, f"{quota_text(view, job)}, so it asks nobody to leave"
        elif job_id in lent:
            verdict = True, f"it can go on without {lent[job_id]} of its {len(attempt.devices)} devices"
        elif view.rules.policy.name.preemptive:
            judge = judge or _Turns(view, job, now)
            verdict = judge(other, attempt)
        else:
            verdict = _by_level(view, other, job)
        verdicts.append(VictimVerdict(job_id, *verdict))
    return tuple(verdicts)


def _by_level(view: View, other: Job, job: Job) -> tuple[bool, str]:
    if not may_leave(view, other, job):
        return False, f"QoS {job.spec.qos} may not preempt {other.spec.qos}"
    return True, quota_text(view, other) if may_reclaim(view, other, job) else (
        f"QoS {job.spec.qos} may preempt {other.spec.qos}"
    )


class _Turns:
    """Where all jobs of a level share the devices: what would be decided at the next tick."""

    def __init__(self, view: View, job: Job, now: Instant) -> None:
        self._view, self._job, self._now = view, job, now
        self._at = asks_at(view, now)
        self._shares: Shares = share_out(view, self._at)
        self._orders = {standing.job.id: standing.order for standing in standings(view, self._at)[0]}
        self._losing = {standing.job.id for standing in self._shares.losing}
        self._granted = any(waiting.id == job.id for waiting in self._shares.waiting)
        self._calm = view.rules.policy.calm
        self._asked = list(willing(view, job, self._shares)) if self._granted else []
        self._plan: Plan | None = None
        if self._granted:
            self._plan = plan_among(view, job, self._asked, self._at, closed(view, job, self._at))
        self._moved = self._who_is_moved() if self._granted and self._calm else frozenset()

    def __call__(self, other: Job, attempt: Attempt) -> tuple[bool, str]:
        view, job = self._view, self._job
        if other.spec.qos != job.spec.qos and not may_leave(view, other, job):
            return False, f"QoS {job.spec.qos} may not preempt {other.spec.qos}"
        if not can_move(other, attempt):
            return False, _stays(other)
        if self._calm and (text := self._young(attempt)):
            return False, text
        if other.id in self._moved:
            return True, f"it can go on on other devices: it is asked to move {self._when()}"
        if other.id not in self._losing:
            return False, self._keeps(other)
        if not self._granted:
            return False, "its devices go to jobs that come before this one"
        if attempt not in self._asked:
            return False, f"it stands before this one: {by_rank(view, other, job, self._at)}"
        if self._plan is None:
            return False, "its devices alone would not be enough"
        if attempt not in self._plan.victims:
            return False, "it need not leave: others are enough"
        if self._calm and not worth_it(view, self._at, job, self._plan):
            price = format_duration(cost(view, other))
            return False, f"moving it costs more ({price} on each of its devices) than this one gains"
        return True, f"is asked to leave {self._when()}"

    def _keeps(self, other: Job) -> str:
        """Why a running job is granted its devices."""
        view, job = self._view, self._job
        order = self._orders.get(other.id)
        if order is None or order < view.order(job) or view.rules.policy.name is PolicyName.LAS:
            return f"it keeps its devices: {by_rank(view, other, job, self._at)}"
        if self._granted:
            return "it need not leave: there is enough without it"
        return f"it keeps its devices: those before this one leave fewer than the {job.spec.request.gpus} that it needs"

    def _when(self) -> str:
        wait = self._at.boot - self._now.boot
        return f"at the next tick, in {wait:.0f} s" if wait > 0 else "next"

    def _who_is_moved(self) -> frozenset[int]:
        """Jobs that go on elsewhere, where nobody needs to leave for good."""
        view, job, plan = self._view, self._job, self._plan
        if plan is not None and worth_it(view, self._at, job, plan):
            return frozenset()
        found = room_by_moving(view, self._at, job, Overdue(view, self._at, self._shares.entitled))
        return frozenset() if found is None else frozenset([attempt.job_id for attempt, _ in found[1]])

    def _young(self, attempt: Attempt) -> str:
        least = self._view.rules.policy.min_run
        started = attempt.started
        if started is None:
            return "it has only just been started" if least else ""
        ran = self._at.boot - started
        if ran >= least - 1e-9:
            return ""
        so_far = format_duration(max(0.0, self._now.boot - started))
        return f"it has run for {so_far}, and everybody may run for {format_duration(least)} at least (min_run)"


def _stays(job: Job) -> str:
    spec = job.spec
    if not spec.requeue:
        return "it may not be requeued (--no-requeue)"
    if spec.max_requeues is not None and job.counted_restarts >= spec.max_requeues:
        return f"it was requeued {job.counted_restarts} times, which is its limit"
    return "it has not shown that it can save and go on: it neither watches for requests nor has saved"
