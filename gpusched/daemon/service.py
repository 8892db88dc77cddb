"""What the verbs work with: the loop, the board and the facts about this daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.board import Board
from gpusched.daemon.config import Config
from gpusched.daemon.loop import Loop
from gpusched.daemon.orders import Orders
from gpusched.daemon.outlook import Outlook
from gpusched.daemon.places import Places
from gpusched.daemon.views import JOB_FIELDS, NEED_REASONS, Shown, job_view
from gpusched.model.changes import Step
from gpusched.model.errors import UsageError
from gpusched.model.job import Attempt, Job
from gpusched.model.state import JobState
from gpusched.policy.explain import reasons
from gpusched.policy.priority import scheduling_order
from gpusched.simulator.forecast import Estimate


@dataclass(slots=True)
class Service:
    loop: Loop
    board: Board
    places: Places
    config: Config
    orders: Orders
    probe: str  # nvml or simulated
    started_at: float
    user: str
    uid: int
    stop: Callable[[], None]
    outlook: Outlook
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)  # told after every step that changed a job
    ending: bool = False  # nobody is kept waiting any more
    last_submits: dict[int, list[str]] = field(default_factory=dict)  # uid → keys, newest first

    def on_step(self, step: Step) -> None:
        if step.changes.jobs:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    _telling: asyncio.Task[None] | None = None

    async def end_waiting(self) -> None:
        """Answer everybody who waits for a job with how it stands: the daemon ends."""
        self.ending = True
        await self._tell()

    async def _tell(self) -> None:
        async with self.moved:
            self.moved.notify_all()

    # ---- views ----------------------------------------------------------------------------------------------

    def view_many(
        self,
        jobs: Sequence[Job],
        attempts: Mapping[int, Attempt] | None = None,
        fields: Collection[str] = JOB_FIELDS.keys(),
        starts: Mapping[int, Estimate] | None = None,
    ) -> list[dict[str, Any]]:
        """JOBs, in the order given. `attempts`: the latest attempts of jobs that are not alive, where known.

        starts: when waiting jobs are expected to start, by job id.
        """
        engine, now = self.loop.engine, self.loop.clock.now()
        waiting = [job for job in jobs if job.state is JobState.PENDING]
        why = reasons(engine.view, waiting, now) if not NEED_REASONS.isdisjoint(fields) else {}
        positions = self.positions() if waiting and "position" in fields else {}
        ended, expected = attempts or {}, starts or {}
        return [
            job_view(
                Shown(
                    job,
                    engine.view.live.get(job.id) or ended.get(job.id),
                    why.get(job.id),
                    positions.get(job.id),
                    engine.view,
                    self.board.progress.get(job.id),
                    self.places,
                    now,
                    expected.get(job.id),
                ),
                fields,
            )
            for job in jobs
        ]

    def positions(self) -> dict[int, int]:
        """Place of every waiting job in scheduling order, from 1."""
        view = self.loop.engine.view
        ordered = sorted(view.waiting(), key=scheduling_order(view, self.loop.clock.now()))
        return {job.id: place for place, job in enumerate(ordered, 1)}

    async def find(self, key: str) -> tuple[list[Job], dict[int, Attempt]]:
        """The jobs that a key names, alive or ended, and the latest attempts of the ended ones. Empty: unknown."""
        wanted = read_key(key)
        return await self._find(*wanted)

    async def _find(self, job_id: int, index: int | None) -> tuple[list[Job], dict[int, Attempt]]:
        state = self.loop.engine.state
        known = state.elements(job_id) or ([state.jobs[job_id]] if job_id in state.jobs else [])
        if not known or any(job.array for job in known):
            stored = await self.loop.read(lambda: self._stored(job_id))
            fresh = {job.id: state.jobs.get(job.id, job) for job in stored}
            known = [fresh[i] for i in sorted(fresh)] or known
        if index is not None:
            known = [job for job in known if job.array is not None and job.array.index == index]
        quiet = [job for job in known if not job.state.live and job.attempt]
        return known, await self.loop.read(lambda: self._latest_attempts(quiet)) if quiet else {}

    def unfinished(self, job_id: int, index: int | None) -> bool:
        """The job, or an element of the array, has not ended. Known without a look into the store."""
        state = self.loop.engine.state
        jobs = state.elements(job_id) or ([state.jobs[job_id]] if job_id in state.jobs else [])
        return any(not job.state.final for job in jobs if index is None or (job.array and job.array.index == index))

    def _stored(self, job_id: int) -> list[Job]:
        elements = list(self.loop.store.array(job_id))
        if elements:
            return elements
        job = self.loop.store.job(job_id)
        return [job] if job is not None else []

    def _latest_attempts(self, jobs: Sequence[Job]) -> dict[int, Attempt]:
        found = {}
        for job in jobs[:1000]:
            attempts = self.loop.store.attempts(job.id)
            if attempts:
                found[job.id] = max(attempts, key=lambda a: a.number)
        return found

    async def stored_jobs(self, ids: Sequence[int]) -> tuple[Job, ...]:
        """Ended jobs (whole arrays) that the engine does not keep any more."""
        found: list[Job] = []
        for job_id in ids:
            found += await self.loop.read(lambda job_id=job_id: self._stored(job_id))  # type: ignore[misc]
        return tuple(found)


def read_key(key: str) -> tuple[int, int | None]:
    """`42` → (42, None), `42_3` → (42, 3). Raises UsageError."""
    head, underscore, tail = key.partition("_")
    ok = head.isascii() and head.isdigit() and len(head) <= 18 and head[0] != "0"
    if not ok or (underscore and not (tail.isascii() and tail.isdigit() and len(tail) <= 9)):
        raise UsageError(f"{key!r} is not a job id", "a job id is a number (42), an array element 42_3")
    return int(head), int(tail) if underscore else None


def body_of(call: Call, *names: str) -> dict[str, Any]:
    """The body as an object with no other fields than these. Raises UsageError."""
    body = call.body if call.body is not None else {}
    if not isinstance(body, dict):
        raise UsageError("the body is not a JSON object", "see docs/api.md")
    for name in body:
        if name not in names:
            raise UsageError(f"unknown field {name!r}", f"known: {', '.join(names)}")
    return body
