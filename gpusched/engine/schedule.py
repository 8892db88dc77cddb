"""Carries out the decisions of the policy, one by one."""

from __future__ import annotations

from collections.abc import Sequence

from gpusched.engine.attempts import ask_to_stop, grace, start
from gpusched.engine.elastic import resize, widen
from gpusched.engine.folding import unfold_ahead, unfold_head
from gpusched.engine.turn import Turn, describe_devices
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.policy import PolicyName
from gpusched.model.rules import PreemptMode
from gpusched.model.state import Stop, StopKind
from gpusched.policy.cycle import cycle, next_look
from gpusched.policy.decisions import Evict, Preempt, Resize, Start, Widen, Withdraw
from gpusched.policy.view import View

RANK_ANEW = 60.0  # seconds
FEW = 100  # waiting jobs that are ranked anew at once
_LEARNING = frozenset({PolicyName.BACKFILL, PolicyName.SJF, PolicyName.SRTF, PolicyName.SRSF, PolicyName.PREDICTED})


def schedule(turn: Turn) -> None:
    """One scheduling cycle, if anything has changed that it could depend on, or its time has come."""
    due = turn.state.look_at is not None and turn.state.look_at <= turn.now.boot + 1e-9
    if turn.view.closing:
        turn.state.look_at = None  # nobody starts or moves any more
        return
    view = turn.view
    if not (turn.dirty or due):
        if turn.started and turn.state.look_at is None and _anybody(view):
            turn.state.look_at = next_look(view, turn.now)
        return
    _rank_anew(turn)
    if not _anybody(view):
        turn.dirty, turn.state.look_at = False, None
        return
    view.due = turn.state.look_at if due else None
    preemptive = turn.rules.policy.name.preemptive
    if preemptive and turn.state.arrays.known:
        unfold_ahead(turn)
    _decide(turn)
    if _end_of_yielding(turn) and not preemptive:
        _decide(turn)  # who took its old place again may be first now, where the first that does not fit blocks others
    view.fresh.clear()
    view.due = None
    turn.dirty = False
    turn.state.look_at = next_look(view, turn.now) if _anybody(view) else None


def _anybody(view: View) -> bool:
    """Somebody waits for devices, or could use more: else there is nothing to decide, now or later."""
    return bool(view.buckets or view.claimants or view.elastic)


def _decide(turn: Turn) -> None:
    for decision in cycle(turn.view, turn.now):
        match decision:
            case Start(job_id, devices, past):
                start(turn, turn.view.jobs[job_id], devices)
                _count_bypass(turn, past)
            case Preempt(past=past):
                _preempt(turn, decision)
                _count_bypass(turn, past)
            case Evict(victims, job_id):
                _ask_to_leave(turn, victims, turn.state.jobs[job_id])
            case Widen():
                widen(turn, decision)
            case Resize():
                resize(turn, decision)
            case Withdraw(job_id, reason):
                job = turn.put_job(turn.state.jobs[job_id], earmark=())
                turn.tell(job, "replanned", f"its devices are chosen anew: {reason}")


def _rank_anew(turn: Turn) -> None:
    """What has been learned of durations meanwhile changes the order of those that wait, once in a while."""
    state, view = turn.state, turn.view
    name = turn.rules.policy.name
    guessing = view.guessed or name is PolicyName.PREDICTED  # which goes by what it has seen, whatever it is told
    if name not in _LEARNING or not guessing or view.durations.version == state.ranked_version:
        return
    if state.ranked_at is None or turn.now.boot - state.ranked_at >= RANK_ANEW or _soon_compared(turn):
        state.ranked_version, state.ranked_at = view.durations.version, turn.now.boot
        view.rank_anew(everybody=name is PolicyName.PREDICTED)


def _soon_compared(turn: Turn) -> bool:
    """Those who wait may be compared with those who run in this cycle, of whom the latest is known: else somebody could
    be asked to leave for a job that stands behind it by what both are expected to need."""
    if not turn.rules.policy.name.preemptive:
        return False
    look_at, buckets = turn.state.look_at, turn.view.buckets
    if look_at is not None and look_at <= turn.now.boot + 1e-9:
        return True
    return len(buckets) <= FEW and sum(len(waiting.entries) for waiting in buckets.values()) <= FEW


def _count_bypass(turn: Turn, past: int | None) -> None:
    if past is not None:
        waiting = turn.state.jobs[past]
        turn.put_job(waiting, bypassed=waiting.bypassed + 1)


def _preempt(turn: Turn, decision: Preempt) -> None:
    """Promise the devices to the preemptor, and ask each victim to save and leave."""
    job = unfold_head(turn, turn.state.jobs[decision.job_id])
    job = turn.put_job(job, earmark=decision.plan.devices)
    shares = tuple(Share(uuid) for uuid in decision.plan.devices)
    plan = decision.plan
    said = [f"preempts job {names}" for names in (_names(turn, plan.victims),) if names]
    said += [f"gets devices of job {names}" for names in (_names(turn, [g.attempt for g in plan.gives]),) if names]
    whom = " and ".join(said) or "waits for jobs that are leaving"
    turn.tell(job, "preempting", f"{whom} for {describe_devices(turn.state, shares)}")
    for each in plan.gives:
        resize(turn, Resize(each.attempt.job_id, each.keeps, for_job=job.id))
    _ask_to_leave(turn, plan.victims, job)


def _names(turn: Turn, attempts: Sequence[Attempt]) -> str:
    return ", ".join(turn.state.jobs[attempt.job_id].key for attempt in attempts)


def _ask_to_leave(turn: Turn, victims: tuple[Attempt, ...], job: Job) -> None:
    for attempt in victims:
        victim = turn.state.jobs[attempt.job_id]
        ask_to_stop(turn, victim, _stop_for(turn, victim, job))


def _stop_for(turn: Turn, victim: Job, preemptor: Job) -> Stop:
    level = turn.rules.qos.get(victim.spec.qos)
    # who leaves an equal, or because of a quota, comes back in any case
    outranked = turn.rules.may_preempt(preemptor.spec.qos, victim.spec.qos)
    to_cancel = level is not None and level.mode is PreemptMode.CANCEL and outranked
    return Stop(
        StopKind.PREEMPT, turn.now.boot + grace(turn, victim), for_job=preemptor.id, to_cancel=to_cancel
    )


def _end_of_yielding(turn: Turn) -> bool:
    """A job that gave its devices back has let the others go first once; now it takes its old place again. Returns
    whether there was one."""
    if not turn.view.buckets:
        return False
    yielding = [bucket for bucket in turn.view.buckets if bucket.yielding]
    if not yielding:
        return False
    jobs = sorted([job for bucket in yielding for job in turn.view.queued(bucket)], key=lambda j: j.id)
    over = [job for job in jobs if not _devices_still_leaving(turn, job)]
    for job in over:
        turn.put_job(job, yielding=False)
    return bool(over)


def _devices_still_leaving(turn: Turn, job: Job) -> bool:
    return any(key.job_id == job.id for key in turn.view.leaving if key not in turn.view.overdue)
