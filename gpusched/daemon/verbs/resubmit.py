"""resubmit: the same job (or whole array) again, as it was submitted, with a new id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.service import Service, body_of
from gpusched.daemon.timers import next_run
from gpusched.daemon.verbs.requests import keys_of
from gpusched.daemon.verbs.submit import take_in
from gpusched.engine.requests import authorise
from gpusched.engine.reservations import present_spec
from gpusched.model import spans
from gpusched.model.errors import GpuschedError, NotFound
from gpusched.model.events import JobSubmitted
from gpusched.model.job import Job


async def resubmit(service: Service, call: Call) -> dict[str, Any]:
    body = body_of(call, "jobs", "hold")
    results = []
    for key in keys_of(body):
        try:
            results.append(await _one(service, call, key, hold=bool(body.get("hold"))))
        except GpuschedError as error:
            results.append({"job": key, "ok": False, "text": error.message, **error.to_json()})
    return {"results": results}


async def _one(service: Service, call: Call, key: str, *, hold: bool) -> dict[str, Any]:
    jobs, _ = await service.find(key, most=None)
    if not jobs:
        raise NotFound(f"there is no job {key}", "see: gpusched queue --all")
    first = jobs[0]
    authorise(call.caller, first)  # its environment may hold secrets: only who could see it may run it again
    digest = first.spec.env_digest
    environment = await service.loop.read(lambda: service.loop.store.environment(digest))
    now = service.loop.clock.now().wall
    nice = first.spec.nice if call.caller.admin else max(0, first.spec.nice)  # below 0 was an administrator's favour
    spec = replace(present_spec(service.loop.engine.view, first), begin=None, dependency=None, nice=nice)
    event = JobSubmitted(
        spec, call.caller, environment, _array_text(jobs), hold, next_run(spec.cron, now) if spec.cron else None
    )
    reply = await take_in(service, call, event)
    return {"job": key, "ok": True, "new": reply.key, "text": f"submitted again as job {reply.key}: {reply.note}"}


def _array_text(jobs: list[Job]) -> str | None:
    """The --array that gives these elements (or this one element) again."""
    if jobs[0].array is None:
        return None
    first = jobs[0].array
    elements = sorted((span for job in jobs for span in job.elements), key=lambda span: span.first)
    return spans.text(elements) + (f"%{first.limit}" if first.limit else "")
