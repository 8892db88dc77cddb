"""Re-derives from the jobs and attempts alone what the indexes say, and what must always hold. For tests: slow."""

from __future__ import annotations

from gpusched.engine.engine import Engine
from gpusched.engine.turn import eligible
from gpusched.model.clock import Instant
from gpusched.model.job import Attempt
from gpusched.model.state import LIVE, JobState
from gpusched.policy.explain import reason


def check(engine: Engine, now: Instant) -> None:
    """Raises AssertionError naming what is wrong."""
    _live_jobs_have_one_attempt(engine)
    _devices_are_not_over_allocated(engine)
    _holders_match_attempts(engine)
    _gangs_are_whole(engine)
    _queues_match_jobs(engine, now)
    _every_waiting_job_has_a_reason(engine, now)


def _live_jobs_have_one_attempt(engine: Engine) -> None:
    view = engine.view
    for job in engine.state.jobs.values():
        attempt = view.live.get(job.id)
        assert (job.state in LIVE) == (attempt is not None), f"job {job.key} is {job.state}, its attempt: {attempt}"
        if attempt is not None:
            assert attempt.number == job.attempt, f"job {job.key}: attempt {attempt.number} lives, not {job.attempt}"
        assert (job.state is JobState.STOPPING) == (job.stop is not None), f"job {job.key}: {job.state}, {job.stop}"
    cpu = sum(1 for j in engine.state.jobs.values() if j.state in LIVE and j.spec.request.gpus == 0)
    assert view.cpu_running == cpu, f"{view.cpu_running} CPU jobs counted, {cpu} run"


def _holding(engine: Engine) -> list[Attempt]:
    return [*engine.view.live.values(), *engine.view.leaving.values()]


def _devices_are_not_over_allocated(engine: Engine) -> None:
    for uuid, slot in engine.view.slots.items():
        shares = [s for a in _holding(engine) for s in a.held if s.uuid == uuid]
        whole = [s for s in shares if s.mem_mib is None]
        assert not whole or len(shares) == 1, f"device {uuid} has two owners: {slot.holders}"
        used = sum(s.mem_mib or 0 for s in shares)
        assert used <= slot.device.total_mib, f"device {uuid}: {used} MiB shared out of {slot.device.total_mib}"


def _holders_match_attempts(engine: Engine) -> None:
    for uuid, slot in engine.view.slots.items():
        expected = {a.key: s.mem_mib for a in _holding(engine) for s in a.held if s.uuid == uuid}
        assert slot.holders == expected, f"device {uuid}: {slot.holders}, but the attempts say {expected}"


def _gangs_are_whole(engine: Engine) -> None:
    for attempt in engine.view.live.values():
        job = engine.state.jobs[attempt.job_id]
        gang = len(attempt.devices)
        assert gang == job.spec.request.gpus, f"job {job.key} has {gang} devices of {job.spec.request.gpus}"
        assert len(set(attempt.uuids)) == gang, f"job {job.key} holds a device twice"


def _queues_match_jobs(engine: Engine, now: Instant) -> None:
    view = engine.view
    queued = [job_id for ids in view.buckets.values() for job_id in ids]
    assert len(queued) == len(set(queued)), "a job waits in two places"
    waiting = set(queued) | view.claimants
    expected = {j.id for j in engine.state.jobs.values() if eligible(j, now, engine.state.rules)}
    overdue = {i for i in expected - waiting if i in engine.state.waiting_for_time}
    assert waiting == expected - overdue, f"waiting: {waiting}, but should be {expected}"
    for bucket, ids in view.buckets.items():
        assert ids == sorted(ids) and ids, f"bucket {bucket} is out of order: {ids}"
    for uuid, slot in view.slots.items():
        if slot.kept_for is not None:
            assert slot.kept_for in view.claimants, f"device {uuid} is kept for {slot.kept_for}, who claims nothing"


def _every_waiting_job_has_a_reason(engine: Engine, now: Instant) -> None:
    for job in engine.state.jobs.values():
        if job.state is JobState.PENDING:
            why = reason(engine.view, job, now.wall)
            assert why.text and why.next, f"job {job.key} waits without a reason"
