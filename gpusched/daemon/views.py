"""Jobs, devices and reasons as the API shows them (docs/api.md). Pure: everything is passed in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from gpusched.daemon.board import DeviceSample, Progress
from gpusched.daemon.places import Places, output_path
from gpusched.engine.verdict import describe
from gpusched.model import spans
from gpusched.model.changes import StoryLine
from gpusched.model.clock import Instant
from gpusched.model.device import Health, Occupancy
from gpusched.model.job import Attempt, AttemptKey, Job
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved
from gpusched.policy.explain import Reason
from gpusched.policy.holdings import Slot
from gpusched.policy.priority import factors
from gpusched.policy.view import View
from gpusched.simulator.forecast import Estimate

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


class Shown(NamedTuple):
    """One job with everything its fields are made from."""

    job: Job
    attempt: Attempt | None  # the latest one, if there is one
    why: Reason | None
    position: int | None
    view: View
    progress: Progress | None
    places: Places
    now: Instant
    start: Estimate | None = None  # of a waiting job: when it is expected to start


# JOB of docs/api.md, field by field: only what is asked for is worked out, because queues are long.
JOB_FIELDS: dict[str, Callable[[Shown], Any]] = {
    "job": lambda s: s.job.key,
    "id": lambda s: s.job.id,
    "array_id": lambda s: s.job.array.array_id if s.job.array else None,
    "array_index": lambda s: s.job.array.index if s.job.array else None,
    "array_indices": lambda s: spans.text(s.job.elements) if s.job.array else None,
    "array_count": lambda s: s.job.size if s.job.array else None,
    "array_limit": lambda s: (s.job.array.limit or None) if s.job.array else None,
    "name": lambda s: s.job.spec.name,
    "user": lambda s: s.job.owner.user,
    "uid": lambda s: s.job.owner.uid,
    "state": lambda s: str(s.job.state),
    "code": lambda s: s.job.state.code,
    "reason": lambda s: _reason_word(s.job, s.why),
    "reason_text": lambda s: _reason_text(s.job, s.why),
    "position": lambda s: s.position,
    "estimated_start": lambda s: estimate_view(s.start if s.job.state is JobState.PENDING else None),
    "qos": lambda s: s.job.spec.qos,
    "partition": lambda s: s.job.spec.request.partition,
    "reservation": lambda s: s.job.spec.request.reservation or None,
    "account": lambda s: s.job.spec.account,
    "gpus": lambda s: s.job.spec.request.gpus,
    "gpus_max": lambda s: s.job.spec.request.gpus_max,
    "gpu_counts": lambda s: list(s.job.spec.request.gpu_counts),
    "speeds": lambda s: [{"gpus": speed.gpus, "rate": speed.rate} for speed in s.job.speeds],
    "resizes": lambda s: s.job.resizes,
    "gpu_mem_mib": lambda s: s.job.spec.request.gpu_mem_mib,
    "shared": lambda s: s.job.spec.request.shared,
    "gpu_type": lambda s: s.job.spec.request.gpu_type,
    "devices": lambda s: _devices(s.attempt if s.job.state.live else None, s.view),
    "attempt": lambda s: s.job.attempt,
    "restarts": lambda s: s.job.restarts,
    "submitted_at": lambda s: s.job.submitted_at,
    "eligible_at": lambda s: s.job.eligible_at,
    "begin_at": lambda s: s.job.spec.begin if not s.job.spec.cron else None,
    "started_at": lambda s: s.job.started_at,
    "ended_at": lambda s: s.job.ended_at,
    "elapsed": lambda s: _elapsed(s.attempt, s.now),
    "waited": lambda s: _waited(s.job, s.now),
    "time_limit": lambda s: s.job.spec.time_limit,
    "expected": lambda s: s.job.spec.expected,
    "nice": lambda s: s.job.spec.nice,
    "exit_code": lambda s: s.job.outcome.code if s.job.state.final and s.job.outcome else None,
    "exit_signal": lambda s: s.job.outcome.signal if s.job.state.final and s.job.outcome else None,
    "exit_text": lambda s: s.job.ended_because,
    "exit_status": lambda s: exit_status(s.job),
    "command": lambda s: list(s.job.spec.command),
    "cwd": lambda s: s.job.spec.cwd,
    "output": lambda s: output_path(s.job, s.job.spec.output),
    "error_output": lambda s: output_path(s.job, s.job.spec.error),
    "job_dir": lambda s: str(s.places.job_dir(s.job.attempt_key)) if s.job.attempt else None,
    "checkpoint_dir": lambda s: str(s.places.checkpoint_dir(s.job)),
    "saved": lambda s: saved_view((s.attempt.saved if s.attempt else None) or s.job.saved),
    "watching": lambda s: bool(s.attempt and s.attempt.live and s.attempt.watching),
    "progress": lambda s: dict(s.progress.last) if s.progress else None,
    "eta": lambda s: s.progress.eta() if s.progress and s.job.state.live else None,
    "dependency": lambda s: str(s.job.spec.dependency) if s.job.spec.dependency else None,
    "comment": lambda s: s.job.spec.comment,
    "cron": lambda s: s.job.spec.cron,
    "next_run_at": lambda s: s.job.spec.begin if s.job.spec.cron else None,
    "stopping": lambda s: _stopping(s.job, s.now),
    "pid": lambda s: s.attempt.pid if s.attempt and s.attempt.live else None,
    "gpu_seconds": lambda s: _gpu_seconds(s.attempt, s.now) if s.attempt else 0.0,
    "ran": lambda s: s.job.ran,
    "preemptions": lambda s: s.job.preemptions,
    "priority": lambda s: factors(s.view, s.job, s.now).total if s.job.state is JobState.PENDING else None,
    "lost": lambda s: s.job.lost,
}


def factors_view(view: View, job: Job, now: Instant) -> dict[str, Any]:
    """The priority of a waiting job and its addends, with what decides its account's fair share."""
    found, ledger = factors(view, job, now), view.ledger
    total = ledger.total(now.wall)
    addends = {"age": found.age, "fair_share": found.fair_share, "size": found.size, "nice": found.nice}
    shown: dict[str, Any] = {
        name: {"value": factor.value, "weight": factor.weight, "points": factor.points}
        for name, factor in addends.items()
    }
    shown["fair_share"]["share"] = ledger.share(job.account)
    shown["fair_share"]["part"] = ledger.usage(job.account, now.wall) / total if total else 0.0
    return {"qos": found.qos, "level": found.level, "priority": found.total, **shown}


NEED_REASONS = frozenset({"reason", "reason_text"})


def job_view(shown: Shown, fields: Collection[str]) -> dict[str, Any]:
    """These fields of a JOB (all of JOB_FIELDS is the whole)."""
    return {name: JOB_FIELDS[name](shown) for name in fields}


def _stopping(job: Job, now: Instant) -> dict[str, Any] | None:
    stop = job.stop
    if stop is None:
        return None
    return {"cause": stop.phrase(), "for_job": stop.for_job, "deadline_in": max(0.0, stop.deadline - now.boot)}


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


def _elapsed(attempt: Attempt | None, now: Instant) -> float | None:
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


def estimate_view(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"earliest": found.earliest, "expected": found.expected, "latest": found.latest, "text": found.because}


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
        "group": device.group,
        "reservations": [
            {"name": r.name, "for": r.for_whom(), "when": r.when(), "active": r.begun, "start_at": r.start,
             "end_at": r.end}
            for r in sorted(view.reservations.values(), key=lambda r: (r.start, r.name))
            if device.uuid in r.devices
        ],
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
    """free, reserved, busy, shared, leaving, foreign, failed or stale."""
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
    if slot.device.foreign_mib > view.rules.foreign_floor_mib:
        return "foreign"
    kept = any(r.begun and slot.device.uuid in r.devices for r in view.reservations.values())
    return "reserved" if kept else "free"
