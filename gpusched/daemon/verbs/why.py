"""why: the one reason for which a job waits, who is ahead, what it could use, whom it could ask, and when it starts."""

from __future__ import annotations

from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.service import Service
from gpusched.daemon.verbs.jobs import the_one
from gpusched.daemon.views import estimate_view
from gpusched.model import spans
from gpusched.model.job import Job
from gpusched.model.state import JobState
from gpusched.policy import explain
from gpusched.policy.explain import Word


async def why(service: Service, call: Call) -> dict[str, Any]:
    jobs, attempts, _ = await the_one(service, call)
    job = next((j for j in jobs if j.state is JobState.PENDING), jobs[0])
    if job.state is JobState.PENDING:
        estimate = await service.outlook.job(job.id)
        job = service.loop.engine.state.jobs.get(job.id, job)  # it may have been started meanwhile
        if job.state is JobState.PENDING:
            return _waiting(service, job) | {"estimated_start": estimate_view(estimate)}
    shown = service.view_many([job], attempts)[0]
    text = _no_need(shown) if shown["ended_at"] or not shown["reason_text"] else shown["reason_text"]
    return {
        "job": job.key, "state": str(job.state), "reason": shown["reason"], "text": text, "next": "",
        "ahead": [], "devices": [], "victims": [], "estimated_start": None,
    }


# Reasons that have nothing to do with devices: who is ahead, and who could be asked to leave, is then beside the point.
_NOT_ITS_TURN = frozenset({
    Word.HELD_USER, Word.HELD_ADMIN, Word.HELD_SYSTEM, Word.BEGIN_TIME, Word.CRON, Word.DEPENDENCY,
    Word.DEPENDENCY_NEVER,
})  # fmt: skip


def _waiting(service: Service, job: Job) -> dict[str, Any]:
    engine, view, now = service.loop.engine, service.loop.engine.view, service.loop.clock.now()
    found, jobs = explain.at_length(view, job, now), engine.state.jobs
    told = {"job": job.key, "state": str(job.state), "reason": str(found.word), "text": found.text, "next": found.next}
    if found.word in _NOT_ITS_TURN:
        return {**told, "ahead": [], "devices": [], "victims": []}
    return {
        **told,
        "ahead": [
            {"job": _before(o, job), "user": o.owner.user, "qos": o.spec.qos, "text": a.text}
            for a in explain.ahead(view, job, now)
            for o in [jobs[a.job_id]]
        ],
        "devices": [
            {"index": d.index, "uuid": d.uuid, "usable": d.usable, "text": d.text}
            for d in explain.devices(view, job, now)
        ],
        "victims": [
            {"job": o.key, "user": o.owner.user, "qos": o.spec.qos, "preemptible": v.preemptible, "text": v.text}
            for v in explain.victims(view, job, now)
            for o in [jobs[v.job_id]]
        ],
    }


def _before(other: Job, job: Job) -> str:
    """What of `other` goes before `job`: of a row of its own array the elements that come earlier."""
    if other.array is None or job.array is None or other.array.array_id != job.array.array_id:
        return other.key
    earlier, _ = spans.cut(other.elements, (range(job.array.index),))
    indices = spans.text(earlier)
    if not indices:
        return other.key
    return f"{other.array.array_id}_{indices}" if indices.isdigit() else f"{other.array.array_id}_[{indices}]"


def _no_need(shown: dict[str, Any]) -> str:
    """Why there is nothing to explain about a job that does not wait."""
    if shown["ended_at"]:
        return f"it has ended ({shown['exit_text']}); to run it again: gpusched requeue {shown['job']}"
    places = [str(device["index"]) for device in shown["devices"]]
    on = f"on device{'s' * (len(places) > 1)} {', '.join(places)}" if places else "without a device"
    return f"it waits for nothing: it has been started {on}; see: gpusched show {shown['job']}"
