"""What happens to attempts: they start, watch, save, are asked to stop, exit, and leave their devices."""

from __future__ import annotations

from gpusched.engine.dependencies import tell_dependents
from gpusched.engine.folding import unfold_head
from gpusched.engine.moves import came_back, left_in
from gpusched.engine.turn import Turn, describe_devices
from gpusched.engine.verdict import Verdict, describe, judge
from gpusched.model.actions import Ask, Asked, Forget, Kill, Launch, LookAgain
from gpusched.model.clock import Instant
from gpusched.model.events import AttemptExited, AttemptSaved, AttemptStarted, AttemptWatching, ScriptChanged
from gpusched.model.evolve import evolve
from gpusched.model.job import Attempt, AttemptKey, Job, Share
from gpusched.model.state import JobState, Outcome, OutcomeKind, Stop, StopKind
from gpusched.policy.coming_back import has_shown
from gpusched.policy.costs import cost
from gpusched.policy.priority import charge, charged

KILL_AGAIN = 10.0  # seconds after a kill that did not end the attempt; doubled each time
MOST_DOUBLED = 5
_MOVES = frozenset({StopKind.PREEMPT, StopKind.RESIZE})  # stops that are not the job's own affair
MOST_PATIENCE = 30.0  # seconds of grace for a cancelled job, however long the grace period of its QoS is


def start(turn: Turn, job: Job, shares: tuple[Share, ...]) -> None:
    """Give the job its devices and order the launch of its next attempt. Of elements in one row, the first starts."""
    job = unfold_head(turn, job)
    attempt = Attempt(
        job.id,
        job.attempt + 1,
        shares,
        turn.state.boot_id,
        created=turn.now.boot,
        created_at=turn.now.wall,
        charge=charge(turn.view, shares) if job.spec.request.shared else None,
    )
    job = turn.put_job(
        job, state=JobState.STARTING, attempt=attempt.number, earmark=(), bypassed=0, yielding=False, patient=False
    )
    turn.put_attempt(attempt)
    if job.spec.request.gpus_max is not None:
        turn.view.fresh.add(job.id)
    turn.view.ledger.start(job, charged(attempt), turn.now.wall)
    if turn.state.story:  # a gang's devices are many to name
        turn.tell(job, "starting", f"attempt {attempt.number} on {describe_devices(turn.state, shares)}")
    turn.act(Launch(attempt.key, job, shares, grace(turn, job)))


def current(turn: Turn, key: AttemptKey, what: str) -> tuple[Job, Attempt] | None:
    """The job and its live attempt, or None for a message about an attempt that is over (counted, dropped)."""
    job, attempt = turn.state.jobs.get(key.job_id), turn.state.view.live.get(key.job_id)
    if job is None or attempt is None or attempt.number != key.number:
        turn.state.late[what] += 1
        return None
    return job, attempt


def on_started(turn: Turn, event: AttemptStarted) -> None:
    found = current(turn, event.attempt, "started")
    if found is None:
        return
    job, attempt = found
    if attempt.started is not None:
        return  # the same fact, observed again after a restart of the daemon
    turn.put_attempt(
        attempt, started=turn.now.boot, started_at=turn.now.wall, pid=event.pid,
        watching=attempt.watching or event.watching,
    )
    turn.started = True
    state = JobState.RUNNING if job.state is JobState.STARTING else job.state
    job = turn.put_job(job, state=state, started_at=turn.now.wall, failed_starts=0)
    turn.tell(job, "started", f"running as process {event.pid}")
    turn.dirty = turn.dirty or turn.rules.policy.migrate  # who is to be moved is decided when nobody is on the way
    tell_dependents(turn, (job,))


def on_watching(turn: Turn, event: AttemptWatching) -> None:
    found = current(turn, event.attempt, "watching")
    if found is not None and not found[1].watching:
        _can_come_back(turn, *found)
        turn.put_attempt(found[1], watching=True)
        came_back(turn, *found)


def on_saved(turn: Turn, event: AttemptSaved) -> None:
    found = current(turn, event.attempt, "saved")
    if found is None or found[1].saved == event.saved:
        return
    job, attempt = found
    _can_come_back(turn, job, attempt)
    turn.put_attempt(attempt, saved=event.saved)
    step = "" if event.saved.step is None else f" at step {event.saved.step}"
    turn.tell(job, "saved", f"saved{step}: {event.saved.checkpoint}")


def _can_come_back(turn: Turn, job: Job, attempt: Attempt) -> None:
    """It watches or has saved for the first time: from now on it may be moved, which may be what somebody waits for."""
    if not has_shown(job, attempt) and (turn.rules.policy.name.preemptive or job.spec.request.elastic):
        turn.dirty = True


def on_script_changed(turn: Turn, event: ScriptChanged) -> None:
    found = current(turn, event.attempt, "script-changed")
    if found is None:
        return
    job, attempt = found
    source = job.spec.source
    now = f"it has sha256 {event.sha256[:12]}…" if event.sha256 else "it cannot be read"
    was = f"{(source.script_sha256 or '')[:12]}… was submitted"
    turn.tell(job, "script-changed", f"attempt {attempt.number} runs a changed {source.script}: {now}, {was}")


def ask_to_stop(turn: Turn, job: Job, stop: Stop) -> Job:
    """Begin (or change the cause of) a stop, tell the job, and set the end of its grace period."""
    changed = job.state is JobState.STOPPING
    if changed and job.stop is not None:
        earlier = min(stop.deadline, job.stop.deadline)
        stop = evolve(stop, deadline=earlier, kills=job.stop.kills, asked=job.stop.asked)
    if stop.asked is None:
        stop = evolve(stop, asked=turn.now.boot)
    job = turn.put_job(job, state=JobState.STOPPING, stop=stop)
    left = max(0.0, stop.deadline - turn.now.boot)
    turn.tell(job, "stopping", f"{stop.phrase()}: asked to save and leave within {left:.0f} s", stop.by)
    turn.act(Ask(job.attempt_key, Asked.STOP, stop.phrase(), stop.deadline, job.spec.signal))
    return job


def grace(turn: Turn, job: Job) -> float:
    """Seconds between the request to stop and the kill."""
    if job.spec.grace is not None:
        return job.spec.grace
    level = turn.rules.qos.get(job.spec.qos)
    return level.grace if level else 60.0


def kill_now(turn: Turn, job: Job, text: str) -> None:
    """Kill the tree, and be woken to do it again, ever more rarely, should that not end it."""
    assert job.stop is not None
    kills = job.stop.kills + 1
    again = KILL_AGAIN * 2 ** min(kills - 1, MOST_DOUBLED)
    job = turn.put_job(job, stop=evolve(job.stop, deadline=turn.now.boot + again, kills=kills))
    turn.tell(job, "killed", text)
    turn.act(Kill(job.attempt_key))


def on_exited(turn: Turn, event: AttemptExited) -> None:
    if event.attempt in turn.view.leaving:
        clear_devices(turn, turn.view.leaving[event.attempt], frozenset(event.clear))
        return  # the same exit reported again, perhaps with more devices seen free
    found = current(turn, event.attempt, "exited")
    if found is None:
        return
    job, attempt = found
    saved = event.outcome.saved or attempt.saved
    uuids = attempt.uuids
    clear = uuids if event.clear == uuids else tuple([uuid for uuid in uuids if uuid in event.clear])
    never = event.outcome.kind is OutcomeKind.NEVER_STARTED
    released = never or len(clear) == len(uuids)
    ended = _ended(turn, attempt, event.outcome)
    attempt = turn.put_attempt(
        attempt,
        ended=ended.boot,
        ended_at=ended.wall,
        outcome=event.outcome,
        saved=saved,
        stop=job.stop,
        cleared=clear,
        released=released,
    )
    held = 0.0 if never else max(0.0, ended.boot - attempt.created)
    turn.view.ledger.end(job.id, held, turn.now.wall)
    if released:
        turn.act(Forget(event.attempt))
    else:
        turn.act(LookAgain(tuple([uuid for uuid in uuids if uuid not in clear])))
    if turn.state.story:
        turn.tell(job, "exited", f"attempt {attempt.number}: {describe(event.outcome)}")
    _settle_job(turn, job, attempt)


def _ended(turn: Turn, attempt: Attempt, outcome: Outcome) -> Instant:
    """When it was over. A daemon that was away for hours learns of it late, but those hours were nobody's GPU time."""
    now, wall, boot = turn.now, outcome.ended_wall, outcome.ended_boot
    if wall is None or boot is None:
        return now
    # Never before its start nor in the future. The boot clock of an earlier boot says nothing about that of this one.
    latest = now.boot if attempt.boot_id == turn.state.boot_id else boot
    boot = max(attempt.started or attempt.created, min(boot, latest))
    return Instant(wall=max(attempt.started_at or attempt.created_at, min(wall, now.wall)), boot=boot)


def _settle_job(turn: Turn, job: Job, attempt: Attempt) -> None:
    assert attempt.outcome is not None
    verdict = judge(job, attempt, attempt.outcome, turn.rules)
    ran = 0.0
    if attempt.started is not None and attempt.ended is not None:
        ran = max(0.0, attempt.ended - attempt.started)
    stop, waits = job.stop, verdict.state is JobState.PENDING
    moved = waits and stop is not None and stop.kind in _MOVES
    resized = waits and stop is not None and stop.kind is StopKind.RESIZE
    leave = left_in(turn, job, attempt) if moved else job.leave
    charged = cost(turn.view, evolve(job, leave=leave)) if moved and attempt.started is not None else 0.0
    job = turn.put_job(
        job,
        state=verdict.state,
        stop=None,
        ran=job.ran + ran,
        gpu_seconds=job.gpu_seconds + ran * len(attempt.devices),
        preemptions=job.preemptions + (moved and not resized),
        resizes=job.resizes + (resized and verdict.restarts > job.restarts),
        limit_used=job.limit_used + ran if resized or attempt.started is None else 0.0,
        earmark=stop.keeps if resized and stop is not None else (),
        lost=job.lost + charged,
        leave=leave,
        requeued_at=turn.now.wall if verdict.state is JobState.PENDING else job.requeued_at,
        saved=attempt.saved or job.saved,
        outcome=attempt.outcome,
        restarts=verdict.restarts,
        failed_starts=verdict.failed_starts,
        unasked_requeues=verdict.unasked_requeues,
        losses=verdict.losses,
        yielding=verdict.yielding,
        patient=verdict.yielding or (job.patient and verdict.state is JobState.PENDING),
        hold=verdict.hold or job.hold,
        ended_at=attempt.ended_at if verdict.state.final else None,
        ended_because=verdict.because if verdict.state.final else "",
    )
    if turn.state.story:
        _tell_verdict(turn, job, attempt.outcome, verdict)


def _tell_verdict(turn: Turn, job: Job, outcome: Outcome, verdict: Verdict) -> None:
    if verdict.state is JobState.PENDING:
        step = job.saved.step if job.saved else None
        where = " and will go on from its checkpoint" + (f" at step {step}" if step is not None else "")
        turn.tell(job, "requeued", f"waits again ({verdict.because}){where if job.saved else ''}")
    else:
        same = verdict.because == describe(outcome)  # the line before has said it
        turn.tell(job, verdict.state.lower(), verdict.state if same else f"{verdict.state}: {verdict.because}")
    if verdict.hold is not None:
        turn.tell(job, "held", verdict.hold.reason)


def clear_devices(turn: Turn, attempt: Attempt, uuids: frozenset[str]) -> None:
    """Devices of an ended attempt were seen free of it."""
    cleared = tuple(uuid for uuid in attempt.uuids if uuid in attempt.cleared or uuid in uuids)
    if cleared == attempt.cleared:
        return
    released = len(cleared) == len(attempt.uuids)
    turn.put_attempt(attempt, cleared=cleared, released=released)
    if released:
        turn.act(Forget(attempt.key))


def fail_device(turn: Turn, uuid: str, fault: str) -> None:
    """A device has failed or vanished: whoever runs on it is asked to save and leave, gangs as a whole."""
    slot = turn.view.slots[uuid]
    for key in sorted(slot.holders):
        job = turn.state.jobs.get(key.job_id)
        if job is None or job.attempt_key != key or job.state not in (JobState.STARTING, JobState.RUNNING):
            continue
        turn.tell(job, "device-failed", f"device {slot.device.index}: {fault}")
        ask_to_stop(turn, job, Stop(StopKind.DEVICE_FAILED, turn.now.boot + grace(turn, job)))
