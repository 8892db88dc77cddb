"""Carries out the decisions of the policy, one by one."""

from __future__ import annotations

from dataclasses import replace

from gpusched.engine.attempts import ask_to_stop, grace, start
from gpusched.engine.turn import Turn, describe_devices
from gpusched.model.job import Job, Share
from gpusched.model.rules import PreemptMode
from gpusched.model.state import Stop, StopKind
from gpusched.policy.cycle import Preempt, Start, Withdraw, cycle


def schedule(turn: Turn) -> None:
    """One scheduling cycle, if anything has changed that it could depend on."""
    if not turn.dirty or turn.view.closing:
        return
    decided = cycle(turn.view)
    for decision in decided:
        match decision:
            case Start(job_id, devices, past):
                start(turn, turn.state.jobs[job_id], devices)
                _count_bypass(turn, past)
            case Preempt(past=past):
                _preempt(turn, decision)
                _count_bypass(turn, past)
            case Withdraw(job_id, reason):
                job = turn.put_job(turn.state.jobs[job_id], earmark=())
                turn.tell(job, "replanned", f"its devices are chosen anew: {reason}")
    _end_of_yielding(turn)
    turn.dirty = False


def _count_bypass(turn: Turn, past: int | None) -> None:
    if past is not None:
        waiting = turn.state.jobs[past]
        turn.put_job(waiting, bypassed=waiting.bypassed + 1)


def _preempt(turn: Turn, decision: Preempt) -> None:
    """Promise the devices to the preemptor, and ask each victim to save and leave."""
    job = turn.put_job(turn.state.jobs[decision.job_id], earmark=decision.plan.devices)
    shares = tuple(Share(uuid) for uuid in decision.plan.devices)
    names = ", ".join(turn.state.jobs[v.job_id].key for v in decision.plan.victims)
    whom = f"preempts job {names}" if names else "waits for jobs that are leaving"
    turn.tell(job, "preempting", f"{whom} for {describe_devices(turn.state, shares)}")
    for attempt in decision.plan.victims:
        victim = turn.state.jobs[attempt.job_id]
        ask_to_stop(turn, victim, _stop_for(turn, victim, job))


def _stop_for(turn: Turn, victim: Job, preemptor: Job) -> Stop:
    level = turn.rules.qos.get(victim.spec.qos)
    to_cancel = level is not None and level.mode is PreemptMode.CANCEL
    return Stop(
        StopKind.PREEMPT, turn.now.boot + grace(turn, victim), for_job=preemptor.id, to_cancel=to_cancel
    )


def _end_of_yielding(turn: Turn) -> None:
    """A job that gave its devices back has let the others go first once; now it takes its old place again."""
    yielding = [job for bucket, ids in turn.view.buckets.items() if bucket.yielding for job in ids]
    for job_id in sorted(yielding):
        job = turn.state.jobs[job_id]
        if not _devices_still_leaving(turn, job):
            turn.put_job(replace(job, yielding=False))


def _devices_still_leaving(turn: Turn, job: Job) -> bool:
    return any(key.job_id == job.id for key in turn.view.leaving if key not in turn.view.overdue)
