"""cancel, hold, release, requeue, preempt, checkpoint, update: requests about jobs, each with its own answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gpusched.api.server import Call
from gpusched.api.submission import read_update
from gpusched.daemon.service import Service, body_of
from gpusched.engine.engine import unknown_dependencies
from gpusched.engine.parts import let_go
from gpusched.engine.requests import JobRequest
from gpusched.model.changes import Answer
from gpusched.model.dependency import parse_dependency
from gpusched.model.errors import NotFound, UsageError
from gpusched.model.events import (
    CancelRequested,
    CheckpointRequested,
    HoldRequested,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    UpdateRequested,
)
from gpusched.model.jobset import read_key

REQUESTS: dict[str, Callable[..., JobRequest]] = {
    "cancel": CancelRequested,
    "hold": HoldRequested,
    "release": ReleaseRequested,
    "requeue": RequeueRequested,
    "preempt": PreemptRequested,
    "checkpoint": CheckpointRequested,
}
MOST_KEYS = 10_000


async def request(service: Service, call: Call, verb: str) -> dict[str, Any]:
    """One of REQUESTS, for every job that the body names."""
    keys = keys_of(body_of(call, "jobs"))
    return await _ask(service, REQUESTS[verb](keys, call.caller))


async def update(service: Service, call: Call) -> dict[str, Any]:
    body = body_of(call, "jobs", "set")
    changes = body.get("set")
    if not isinstance(changes, dict) or not changes:
        raise UsageError("nothing to change", "see: gpusched update --help")
    changes = read_update(changes)
    return await _ask(service, UpdateRequested(keys_of(body), call.caller, **changes))


def keys_of(body: dict[str, Any]) -> tuple[str, ...]:
    """The jobs that the body names. Raises UsageError."""
    keys = body.get("jobs")
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise UsageError("no job is named", 'send {"jobs": ["42", "43_1"]}')
    if len(keys) > MOST_KEYS:
        raise UsageError(f"{len(keys)} jobs at once are too many", f"at most {MOST_KEYS}")
    for key in keys:
        read_key(key)
    return tuple(dict.fromkeys(keys))


async def _ask(service: Service, event: JobRequest) -> dict[str, Any]:
    """Ask the engine; jobs that it does not keep any more are recalled from the store and asked for again."""
    event = await _with_recalled(service, event)
    answers: list[Answer] = list(await service.loop.ask(event))
    missing = [a.key for a in answers if isinstance(a.error, NotFound)]
    if missing:
        recalled = await service.stored_jobs(missing)
        if recalled:
            again = replace(event, keys=tuple(missing), recalled=recalled)
            answers = [a for a in answers if a.key not in missing]
            answers += await service.loop.ask(again)
    return {"results": [_result(answer) for answer in answers]}


async def _with_recalled(service: Service, event: JobRequest) -> JobRequest:
    """Add the ended jobs that the request is about, or that a new dependency names, and that the engine does not keep.

    Of an array it keeps what is not over; to requeue it means all of its ended elements, too.
    """
    engine = service.loop.engine
    missing: tuple[str, ...] = ()
    if isinstance(event, RequeueRequested):
        missing = let_go(engine.state, event.keys)
    elif isinstance(event, UpdateRequested) and event.dependency:
        with suppress(UsageError):  # what cannot be read the engine says of each job
            missing = unknown_dependencies(engine, parse_dependency(event.dependency))
    return replace(event, recalled=await service.stored_jobs(missing)) if missing else event


def _result(answer: Answer) -> dict[str, Any]:
    if answer.error is not None:
        return {"job": answer.key, "ok": False, "text": answer.error.message, **answer.error.to_json()}
    return {"job": answer.key, "ok": True, "text": answer.done}
