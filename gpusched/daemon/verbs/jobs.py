"""queue, show, wait, history: what people want to know about jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.service import MOST_ROWS, Service
from gpusched.daemon.views import JOB_FIELDS, attempt_view, factors_view, story_view
from gpusched.model.clock import Instant
from gpusched.model.errors import NotFound, UsageError, known
from gpusched.model.job import Attempt, Job
from gpusched.model.jobset import read_key, split_keys
from gpusched.model.state import JobState
from gpusched.policy.priority import scheduling_order
from gpusched.policy.view import View
from gpusched.ports import HistoryQuery
from gpusched.simulator.forecast import Estimate

LONGEST_WAIT = 60.0
MOST_WAITED = 1000  # rows of an array in the answer of wait, if there are more: those that did not complete


def _words(call: Call, name: str) -> tuple[str, ...]:
    return tuple(word for word in call.query.get(name, "").split(",") if word)


def _keys(call: Call) -> tuple[str, ...]:
    """The jobs that are asked for; commas inside brackets (`42_[1,3]`) belong to one key."""
    return tuple(key for key in split_keys(call.query.get("jobs", "")) if key)


def _states(call: Call) -> frozenset[JobState]:
    """States by name or by short code. Raises UsageError listing them."""
    by_word = {str(state): state for state in JobState} | {state.code: state for state in JobState}
    chosen = set()
    for word in _words(call, "state"):
        if word.upper() not in by_word:
            raise known("state", word, [f"{state} ({state.code})" for state in JobState])
        chosen.add(by_word[word.upper()])
    return frozenset(chosen)


def _number(call: Call, name: str, default: float | None = None) -> float | None:
    text = call.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:
        raise UsageError(f"{name}={text!r} is not a number")
    return value


async def queue(service: Service, call: Call) -> dict[str, Any]:
    states, users, names = _states(call), _words(call, "user"), _words(call, "name")
    keys = _keys(call)
    jobs: list[Job] = []
    attempts: dict[int, Attempt] = {}
    if keys:
        for key in dict.fromkeys(keys):
            found, theirs = await service.find(key)
            if not found:
                raise NotFound(f"there is no job {key}", "see: gpusched queue --all")
            jobs += found
            attempts |= theirs
    else:
        jobs = [job for job in service.loop.engine.state.jobs.values() if not job.state.final]
        if call.query.get("all") or any(state.final for state in states):
            ended = await _history(service, HistoryQuery(limit=10_000))
            jobs += [job for job, _ in ended]
            attempts |= {job.id: max(a, key=lambda x: x.number) for job, a in ended if a}
    chosen = [
        job
        for job in {job.id: job for job in jobs}.values()
        if (not states or job.state in states)
        and (not users or job.owner.user in users or str(job.owner.uid) in users)
        and (not names or any(fnmatchcase(job.spec.name, name) for name in names))
    ]
    fields = _fields(call)
    starts = await _starts(service, chosen) if "estimated_start" in fields else {}
    chosen.sort(key=display_order(service.loop.engine.view, service.loop.clock.now()))
    return {"jobs": service.view_many(chosen, attempts, fields, starts)}


async def _starts(service: Service, jobs: Sequence[Job]) -> Mapping[int, Estimate]:
    """When those of them that wait are expected to start, as far as that is known at once."""
    return await service.outlook.queue() if any(job.state is JobState.PENDING for job in jobs) else {}


def _fields(call: Call) -> Collection[str]:
    """The fields of JOB that are asked for; all, if none is named. Raises UsageError listing them."""
    asked = _words(call, "fields")
    for name in asked:
        if name not in JOB_FIELDS:
            raise known("field", name, tuple(JOB_FIELDS))
    return dict.fromkeys(asked) or JOB_FIELDS.keys()


def display_order(view: View, now: Instant) -> Callable[[Job], tuple[Any, ...]]:
    """Running first, then who waits for devices in scheduling order, then who waits for its time or for other jobs,
    then the held ones (both in the order in which they would be served), then the ended, latest first."""
    order = scheduling_order(view, now)

    def place(job: Job) -> tuple[Any, ...]:
        if job.state.live:
            return (0, job.id)
        if job.state.final:
            return (4, -(job.ended_at or 0.0), job.id)
        if job.hold is not None:
            return (3, *order(job))
        waits_for_devices = job.id in view.claimants or view.place(job) is not None
        return (1 if waits_for_devices else 2, *order(job))

    return place


async def the_one(
    service: Service, call: Call, most: int = MOST_ROWS
) -> tuple[list[Job], dict[int, Attempt], bool]:
    """The jobs named in the path, and whether several elements of an array are meant. Raises NotFound."""
    key = call.path["job"]
    jobs, attempts = await service.find(key, most)
    if not jobs:
        raise NotFound(f"there is no job {key}", "see: gpusched queue --all")
    several = len(jobs) > 1 or jobs[0].size > 1
    wanted = read_key(key)
    whole = wanted.chosen is None and jobs[0].array is not None and jobs[0].array.array_id == wanted.job_id
    return jobs, attempts, several or whole or (wanted.chosen is not None and wanted.single is None)


def _elements(
    service: Service, call: Call, jobs: list[Job], attempts: dict[int, Attempt], starts: Mapping[int, Estimate]
) -> dict[str, Any]:
    """Several elements of an array: a JOB for each row, how many elements there are, and how many are left off."""
    count, shown = _count(call, jobs), sum(job.size for job in jobs)
    elements = service.view_many(jobs, attempts, starts=starts)
    return {"array": call.path["job"], "elements": elements, "count": count, "left_off": max(0, count - shown)}


def _count(call: Call, jobs: list[Job]) -> int:
    chosen = read_key(call.path["job"]).chosen
    array = jobs[0].array
    if chosen is not None or array is None:
        return sum(job.size for job in jobs)
    return array.count


async def show(service: Service, call: Call) -> dict[str, Any]:
    jobs, attempts, several = await the_one(service, call)
    if several:
        return _elements(service, call, jobs, attempts, await _starts(service, jobs))
    job = jobs[0]
    told = await service.row_of(job)
    story = await service.loop.read(lambda: service.loop.store.story(told.id))
    tries = await service.loop.read(lambda: service.loop.store.attempts(job.id))
    starts = await _starts(service, jobs)
    now = service.loop.clock.now()
    view = service.loop.engine.view
    shown = service.view_many([job], attempts, starts=starts)[0]
    shown["story"] = story_view(story)
    shown["attempts"] = [attempt_view(attempt, view, now) for attempt in tries]
    shown["gpu_seconds"] = sum(a["gpu_seconds"] for a in shown["attempts"])
    if job.state is JobState.PENDING and job.spec.cron is None:
        shown["factors"] = factors_view(view, job, now)
    source = job.spec.source
    shown["source"] = {
        "script": source.script,
        "script_sha256": source.script_sha256,
        "git_commit": source.git_commit,
        "git_dirty": source.git_dirty,
    }
    return shown


async def wait(service: Service, call: Call) -> dict[str, Any]:
    """Answer as soon as the job (every element of the array) has ended, or after the timeout."""
    patience = min(_number(call, "timeout", 30.0) or 0.0, LONGEST_WAIT)
    wanted = read_key(call.path["job"])
    with suppress(TimeoutError):
        async with asyncio.timeout(patience), service.moved:
            await service.moved.wait_for(lambda: service.ending or not service.unfinished(wanted))
    jobs, attempts, several = await the_one(service, call, MOST_WAITED)
    if not several:
        return service.view_many(jobs, attempts)[0]
    return _elements(service, call, jobs, attempts, {})


async def history(service: Service, call: Call) -> dict[str, Any]:
    limit = int(_number(call, "limit", 1000.0) or 0)
    ids: list[int] = []
    for key in _keys(call):
        ids += [(await service.row_of(job)).id for job in (await service.find(key))[0]]
    if _keys(call) and not ids:
        return {"jobs": []}
    query = HistoryQuery(
        users=_words(call, "user"),
        states=tuple(str(state) for state in _states(call)),
        names=_words(call, "name"),
        ids=tuple(ids),
        since=_number(call, "since"),
        until=_number(call, "until"),
        limit=max(1, min(limit, 100_000)),
    )
    found = await _history(service, query)
    attempts = {job.id: max(a, key=lambda x: x.number) for job, a in found if a}
    shown = service.view_many([job for job, _ in found], attempts)
    now = service.loop.clock.now()
    view = service.loop.engine.view
    for entry, (_, tries) in zip(shown, found, strict=True):
        entry["gpu_seconds"] = sum(attempt_view(a, view, now)["gpu_seconds"] for a in tries)
        entry["first_started_at"] = min((a.started_at for a in tries if a.started_at is not None), default=None)
    return {"jobs": shown}


async def _history(service: Service, query: HistoryQuery) -> tuple[tuple[Job, tuple[Attempt, ...]], ...]:
    return await service.loop.read(lambda: service.loop.store.history(query))
