"""Jobs, devices and reasons as the API shows them (docs/api.md). Pure: everything is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpusched.daemon.board import Board, DeviceSample
from gpusched.daemon.places import Places, output_path
from gpusched.engine.verdict import describe
from gpusched.model.changes import StoryLine
from gpusched.model.clock import Instant
from gpusched.model.device import Health, Occupancy
from gpusched.model.job import Attempt, AttemptKey, Job
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved
from gpusched.policy.explain import Reason
from gpusched.policy.view import Slot, View

EXIT_TIMEOUT, EXIT_CANCELLED, EXIT_LOST = 124, 130, 125


def exit_status(job: Job) -> int | None:
    """What `run` and `wait` return for an ended job; None while it has not ended."""
    outcome = job.outcome
    match job.state:
        case JobState.COMPLETED:
            return 0
        case JobState.TIMEOUT:
            return EXIT_TIMEOUT
        case JobState.CANCELLED:
            return EXIT_CANCELLED
        case JobState.LOST | JobState.PREEMPTED:
            return EXIT_LOST
        case JobState.FAILED if outcome is not None:
            return _failed_status(outcome)
        case JobState.FAILED:
            return EXIT_LOST
        case _:
            return None


def _failed_status(outcome: Outcome) -> int:
    match outcome.kind:
        case OutcomeKind.EXITED:
            return outcome.code or 1
        case OutcomeKind.SIGNALLED:
            return 128 + (outcome.signal or 0)
        case OutcomeKind.LAUNCH_FAILED:
            return 127 if outcome.errno == 2 else 126  # as a shell says: not found, or not to be executed
        case _:
            return EXIT_LOST


def job_view(
    job: Job,
    attempt: Attempt | None,
    *,
    why: Reason | None,
    position: int | None,
    view: View,
    board: Board,
    places: Places,
    now: Instant,
) -> dict[str, Any]:
    """JOB of docs/api.md. `attempt`: the latest one, if there is one."""
    spec, request, outcome = job.spec, job.spec.request, job.outcome
    progress = board.progress.get(job.id)
    elapsed = _elapsed(job, attempt, now)
    stop = job.stop
    return {
        "job": job.key,
        "id": job.id,
        "array_id": job.array.array_id if job.array else None,
        "array_index": job.array.index if job.array else None,
        "name": spec.name,
        "user": job.owner.user,
        "uid": job.owner.uid,
        "state": str(job.state),
        "code": job.state.code,
        "reason": _reason_word(job, why),
        "reason_text": _reason_text(job, why),
        "position": position,
        "qos": spec.qos,
        "partition": request.partition,
        "account": spec.account,
        "gpus": request.gpus,
        "gpu_mem_mib": request.gpu_mem_mib,
        "shared": request.shared,
        "gpu_type": request.gpu_type,
        "devices": _devices(attempt if job.state.live else None, view),
        "attempt": job.attempt,
        "restarts": job.restarts,
        "submitted_at": job.submitted_at,
        "begin_at": spec.begin if not spec.cron else None,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "elapsed": elapsed,
        "waited": _waited(job, now),
        "time_limit": spec.time_limit,
        "exit_code": outcome.code if outcome else None,
        "exit_signal": outcome.signal if outcome else None,
        "exit_text": (job.ended_because or describe(outcome)) if outcome else job.ended_because,
        "exit_status": exit_status(job),
        "command": list(spec.command),
        "cwd": spec.cwd,
        "output": output_path(job, spec.output),
        "error_output": output_path(job, spec.error),
        "job_dir": str(places.job_dir(job.attempt_key)) if job.attempt else None,
        "checkpoint_dir": str(places.checkpoint_dir(job)),
        "saved": saved_view(job.saved if attempt is None or attempt.saved is None else attempt.saved),
        "watching": bool(attempt and attempt.live and attempt.watching),
        "progress": dict(progress.last) if progress else None,
        "eta": progress.eta() if progress and job.state.live else None,
        "dependency": str(spec.dependency) if spec.dependency else None,
        "comment": spec.comment,
        "cron": spec.cron,
        "next_run_at": spec.begin if spec.cron else None,
        "stopping": None
        if stop is None
        else {
            "cause": stop.phrase(),
            "for_job": stop.for_job,
            "deadline_in": max(0.0, stop.deadline - now.boot),
        },
        "pid": attempt.pid if attempt and attempt.live else None,
        "gpu_seconds": _gpu_seconds(attempt, now) if attempt else 0.0,
    }


def _reason_word(job: Job, why: Reason | None) -> str | None:
    if job.stop is not None:
        return str(job.stop.kind)
    return str(why.word) if why else None


def _reason_text(job: Job, why: Reason | None) -> str | None:
    if job.stop is not None:
        return job.stop.phrase()
    return why.text if why else (job.ended_because or None)


def _devices(attempt: Attempt | None, view: View) -> list[dict[str, Any]]:
    found = []
    for share in attempt.devices if attempt else ():
        slot = view.slots.get(share.uuid)
        found.append({"index": slot.device.index if slot else None, "uuid": share.uuid, "mem_mib": share.mem_mib})
    return sorted(found, key=lambda d: (d["index"] is None, d["index"]))


def _elapsed(job: Job, attempt: Attempt | None, now: Instant) -> float | None:
    if attempt is None or attempt.started is None:
        return None
    return max(0.0, (attempt.ended if attempt.ended is not None else now.boot) - attempt.started)


def _waited(job: Job, now: Instant) -> float | None:
    if job.eligible_at is None:
        return None
    until = now.wall if job.state is JobState.PENDING else job.started_at or job.ended_at or now.wall
    return max(0.0, until - job.eligible_at)


def _gpu_seconds(attempt: Attempt, now: Instant) -> float:
    if attempt.started is None:
        return 0.0
    end = attempt.ended if attempt.ended is not None else now.boot
    return max(0.0, end - attempt.started) * len(attempt.devices)


def saved_view(saved: Saved | None) -> dict[str, Any] | None:
    return None if saved is None else {"checkpoint": saved.checkpoint, "step": saved.step, "at": saved.at}


def story_view(lines: Sequence[StoryLine]) -> list[dict[str, Any]]:
    return [{"at": s.at, "attempt": s.attempt, "kind": s.kind, "text": s.text, "by": s.by} for s in lines]


def attempt_view(attempt: Attempt, view: View, now: Instant) -> dict[str, Any]:
    outcome = attempt.outcome
    return {
        "number": attempt.number,
        "devices": _devices(attempt, view),
        "created_at": attempt.created_at,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "pid": attempt.pid,
        "outcome": None
        if outcome is None
        else {
            "kind": str(outcome.kind),
            "code": outcome.code,
            "signal": outcome.signal,
            "errno": outcome.errno,
            "text": describe(outcome),
            "killed": outcome.killed,
            "max_rss_mib": outcome.max_rss_mib,
            "cpu_s": outcome.cpu_s,
        },
        "saved": saved_view(attempt.saved),
        "cause": attempt.stop.phrase() if attempt.stop else None,
        "gpu_seconds": _gpu_seconds(attempt, now),
    }


def device_view(
    slot: Slot, occupancy: Occupancy | None, view: View, samples: Sequence[DeviceSample], user_of: Mapping[int, str]
) -> dict[str, Any]:
    """DEVICE of docs/api.md."""
    device = slot.device
    reading = occupancy.reading if occupancy else None
    foreign = occupancy.foreign_pids if occupancy else ()
    memory = {p.pid: p.used_mib for p in reading.processes} if reading else {}
    return {
        "index": device.index,
        "uuid": device.uuid,
        "name": device.name,
        "pci_bus_id": reading.pci_bus_id if reading else None,
        "memory_total": device.total_mib,
        "memory_used": reading.used_mib if reading else None,
        "utilization": reading.utilization if reading else None,
        "temperature": reading.temperature_c if reading else None,
        "power": reading.power_w if reading else None,
        "power_limit": reading.power_limit_w if reading else None,
        "health": str(device.health),
        "fault": device.fault,
        "state": device_state(slot, view),
        "jobs": [_holder(key, mem, view, occupancy) for key, mem in sorted(slot.holders.items())],
        "foreign": [{"pid": p, "user": user_of.get(p), "used_mib": memory.get(p)} for p in foreign],
        "foreign_mib": device.foreign_mib,
        "samples": [
            {
                "at": s.at,
                "memory_used": s.memory_used,
                "utilization": s.utilization,
                "power": s.power,
                "temperature": s.temperature,
            }
            for s in samples
        ],
    }


def _holder(key: AttemptKey, mem: int | None, view: View, occupancy: Occupancy | None) -> dict[str, Any]:
    job = view.jobs.get(key.job_id)
    used = dict(occupancy.own_mib).get(key) if occupancy else None
    stop = job.stop if job and job.attempt == key.number else None
    return {
        "job": job.key if job else str(key.job_id),
        "user": job.owner.user if job else None,
        "name": job.spec.name if job else None,
        "mem_mib": mem,
        "used_mib": used,
        "started_at": job.started_at if job else None,
        "leaving_for": stop.for_job if stop else None,
    }


def device_state(slot: Slot, view: View) -> str:
    """free, busy, shared, leaving, foreign, failed or stale."""
    if slot.device.health is not Health.OK:
        return "failed"
    if slot.device.stale:
        return "stale"
    if slot.holders:
        stopping = all(
            key not in {a.key for a in view.live.values()}
            or view.jobs[key.job_id].state is JobState.STOPPING
            for key in slot.holders
        )
        return "leaving" if stopping else "busy" if slot.exclusive else "shared"
    return "foreign" if slot.device.foreign_mib > view.rules.foreign_floor_mib else "free"
