"""submit: take a job in, or (dry_run) say what would become of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpusched.api.server import Call
from gpusched.api.submission import read_submission, to_spec
from gpusched.daemon.service import Service
from gpusched.daemon.timers import next_run
from gpusched.daemon.views import estimate_view
from gpusched.engine.engine import unknown_dependencies
from gpusched.model.array import parse_array
from gpusched.model.changes import Submitted
from gpusched.model.events import JobSubmitted

KEEP_LAST = 100
MOST_IDS = 1000  # job ids in one answer: those of an array follow each other


async def submit(service: Service, call: Call) -> dict[str, Any]:
    body = read_submission(call.body)
    spec, environment = to_spec(body, service.config.rules)
    now = service.loop.clock.now()
    first = next_run(spec.cron, now.wall) if spec.cron else None
    event = JobSubmitted(spec, call.caller, environment, body.array, body.hold, first)
    if call.query.get("dry_run") in ("1", "true"):
        event = await _with_recalled(service, event)
        note = service.loop.engine.preview(event, now)
        count = parse_array(body.array).count if body.array is not None else 1
        start = estimate_view(await service.outlook.submit(event))
        return {"job": None, "ids": [], "count": count, "note": note, "dry_run": True, "estimated_start": start}
    reply = await take_in(service, call, event)
    ids = list(reply.job_ids[:MOST_IDS])
    return {"job": reply.key, "ids": ids, "count": len(reply.job_ids), "note": reply.note, "dry_run": False}


async def take_in(service: Service, call: Call, event: JobSubmitted) -> Submitted:
    """Hand a submit to the engine and wait until it is durable."""
    event = await _with_recalled(service, event)
    service.orders.remember_environment(event.spec.env_digest, event.environment)
    reply: Submitted = await service.loop.ask(event)
    recent = service.last_submits.get(call.caller.uid)
    if recent is not None:
        recent.insert(0, reply.key)
        del recent[KEEP_LAST:]
    return reply


async def _with_recalled(service: Service, event: JobSubmitted) -> JobSubmitted:
    """Add the ended jobs that it depends on and that the engine does not keep."""
    missing = unknown_dependencies(service.loop.engine, event.spec.dependency)
    return replace(event, recalled=await service.stored_jobs(missing)) if missing else event


async def last(service: Service, call: Call) -> dict[str, Any]:
    """The caller's latest submits, newest first: `@` and `@~1`."""
    recent = service.last_submits.get(call.caller.uid)
    if recent is None:
        uid = call.caller.uid
        recent = service.last_submits[uid] = await service.loop.read(
            lambda: list(service.loop.store.recent_keys(uid, KEEP_LAST))
        )
    return {"jobs": recent}
