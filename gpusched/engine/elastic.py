"""Elastic jobs get more devices at a start, are asked to go on with another number, and measured by what they tell."""

from __future__ import annotations

from gpusched.engine.attempts import ask_to_stop, current, grace
from gpusched.engine.turn import Turn, describe_devices
from gpusched.model.actions import Launch
from gpusched.model.events import AttemptProgressed
from gpusched.model.evolve import evolve
from gpusched.model.job import Attempt, Job, Pace, Share, Speed
from gpusched.model.state import Stop, StopKind
from gpusched.model.units import format_duration
from gpusched.policy.decisions import Resize, Widen
from gpusched.policy.priority import charged
from gpusched.policy.speedup import measured, speedup, step_seconds, with_speed

SHORTEST = 30.0  # seconds between two reports that make a measurement of the speed


def widen(turn: Turn, decision: Widen) -> None:
    """The attempt that was ordered in this turn gets these devices: nobody else could use them now."""
    job, attempt = turn.state.jobs[decision.job_id], turn.view.live[decision.job_id]
    attempt = turn.put_attempt(attempt, devices=decision.devices)
    turn.view.ledger.end(job.id, 0.0, turn.now.wall)
    turn.view.ledger.start(job, charged(attempt), turn.now.wall)
    for place, action in enumerate(turn.actions):
        if isinstance(action, Launch) and action.attempt == attempt.key:
            turn.actions[place] = evolve(action, devices=decision.devices)
    where = describe_devices(turn.state, decision.devices)
    turn.tell(job, "widened", f"takes {len(decision.devices)} at once, {where}: nobody else could use them now")


def resize(turn: Turn, decision: Resize) -> None:
    """Ask a running job to save and go on with these devices, which are kept for it."""
    job, attempt = turn.state.jobs[decision.job_id], turn.view.live[decision.job_id]
    held, will = len(attempt.devices), len(decision.keeps)
    where = describe_devices(turn.state, tuple([Share(uuid) for uuid in decision.keeps]))
    turn.tell(job, "resizing", f"goes on with {will} of {job.spec.request.counts_text} GPUs, {where}"
              f"{_why(job, held, will, decision.seconds_left)}")
    deadline = turn.now.boot + grace(turn, job)
    stop = Stop(StopKind.RESIZE, deadline, for_job=decision.for_job, keeps=decision.keeps, was=held)
    ask_to_stop(turn, job, stop)


def _why(job: Job, held: int, will: int, left: float | None) -> str:
    """`: 12.1 steps/s on 2, expected 19.4 on 4; about 3:20:00 to go`."""
    if will == held:
        return ": others make room for a gang"
    parts = []
    if job.speeds and measured(job.speeds, held):
        known = "measured" if measured(job.speeds, will) else "expected"
        now, then = (1 / step_seconds(job.speeds, count) for count in (held, will))
        parts.append(f"{now:.3g} steps/s on {held}, {known} {then:.3g} on {will}")
    elif will > held:
        parts.append(f"expected to be {speedup(job.speeds, held, will):.2f} times as quick")
    if will > held and left is not None:
        parts.append(f"about {format_duration(left)} to go")
    return f": {'; '.join(parts)}" if parts else ""


def on_progressed(turn: Turn, event: AttemptProgressed) -> None:
    """A report of an elastic job's progress. Others are not measured: nobody would use it."""
    found = current(turn, event.attempt, "progressed")
    if found is None or found[0].spec.request.gpus_max is None:
        return
    job, attempt = found
    pace = _continued(attempt, event)
    if pace == attempt.pace:
        return
    turn.put_attempt(attempt, pace=pace)
    if pace.rate is not None and pace.at - pace.first_at >= SHORTEST:
        speeds = with_speed(job.speeds, Speed(len(attempt.devices), pace.rate))
        if speeds != job.speeds:
            turn.put_job(job, speeds=speeds)


def _continued(attempt: Attempt, event: AttemptProgressed) -> Pace:
    before = attempt.pace
    if before is None or event.step < before.step or event.at < before.at:  # it counts anew, or its clock was put back
        return Pace(event.step, event.at, event.step, event.at, event.total)
    return evolve(before, step=event.step, at=event.at, total=event.total)
