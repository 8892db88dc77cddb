"""What the verbs work with: the loop, the board and the facts about this daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from gpusched.engine.parts import named
from gpusched.model.changes import Step
from gpusched.model.errors import UsageError
from gpusched.model.job import Attempt, Job
from gpusched.model.jobset import Key, read_key
from gpusched.model.state import JobState
from gpusched.policy.explain import reasons
from gpusched.policy.priority import scheduling_order
from gpusched.simulator.forecast import Estimate

MOST_ROWS = 10_000  # of one array that are looked up for people


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
                    self.place(job, positions),
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

    def place(self, job: Job, positions: Mapping[int, int]) -> int | None:
        """The place of a job among these, also of elements that wait folded into a row."""
        if job.id in positions:
            return positions[job.id]
        row = self.loop.engine.state.row(job.id) if positions and job.state is JobState.PENDING else None
        if row is None or row.array is None or row.id not in positions:
            return None
        before = sum(max(0, min(span.length, job.id - row.array.array_id - span.offset)) for span in row.elements)
        return positions[row.id] + before

    def positions(self) -> dict[int, int]:
        """Place of every waiting row in scheduling order, from 1. Elements that wait as one row take a place each."""
        view = self.loop.engine.view
        places, place = {}, 1
        for job in sorted(view.waiting(), key=scheduling_order(view, self.loop.clock.now())):
            places[job.id] = place
            place += job.size
        return places

    # ---- looking jobs up ------------------------------------------------------------------------------------

    async def find(self, key: str, most: int | None = MOST_ROWS) -> tuple[list[Job], dict[int, Attempt]]:
        """The jobs that a key names, alive or ended, and the latest attempts of those that do not run. Empty: unknown.

        Of elements that are folded into a row, those that are named are one job. most: see Store.array.
        """
        wanted = read_key(key)
        rows = await self._rows(wanted, most)
        known = [job for row in rows if (job := named(row, wanted)) is not None]
        quiet = [job for job in known if not job.state.live and job.attempt]
        return known, await self.loop.read(lambda: self._latest_attempts(quiet)) if quiet else {}

    async def _rows(self, wanted: Key, most: int | None) -> list[Job]:
        """The rows in which the jobs are: the engine's, and from the store those that it has let go."""
        state, store = self.loop.engine.state, self.loop.store
        if wanted.single is not None:
            row = state.element(wanted.job_id, wanted.single)
            if row is None:
                row = await self.loop.read(lambda: store.element(wanted.job_id, wanted.single or 0))
            return [row] if row is not None else []
        array = state.arrays.known.get(wanted.job_id)
        if array is not None and not array.let_go:
            return state.elements(wanted.job_id)
        row = state.row(wanted.job_id)
        if array is None and row is not None:
            return [row]
        stored = await self.loop.read(lambda: store.array(wanted.job_id, most))
        if not stored:
            row = await self.loop.read(lambda: store.job(wanted.job_id))
            return [row] if row is not None else []
        fresh = {job.id: job for job in (*stored, *state.elements(wanted.job_id))}
        return [fresh[job_id] for job_id in sorted(fresh)]

    async def row_of(self, job: Job) -> Job:
        """The row of a job that `find` gave: it is another one for an element that is folded into it."""
        state = self.loop.engine.state
        if job.array is None or job.id in state.jobs:
            return job
        return state.row(job.id) or await self.loop.read(lambda: self.loop.store.job(job.id)) or job

    def unfinished(self, wanted: Key) -> bool:
        """The job, or an element of the array, has not ended. Known without a look into the store."""
        state = self.loop.engine.state
        array = state.arrays.known.get(wanted.job_id)
        if wanted.single is not None:
            row = state.element(wanted.job_id, wanted.single)
        elif array is None:
            row = state.row(wanted.job_id)
        elif wanted.chosen is None:
            return array.unfinished > 0
        else:
            rows = (row for row in state.elements(wanted.job_id) if not row.state.final)
            row = next((row for row in rows if named(row, wanted) is not None), None)
        return row is not None and not row.state.final

    def _latest_attempts(self, jobs: Sequence[Job]) -> dict[int, Attempt]:
        found = {}
        for job in jobs[:1000]:
            attempts = self.loop.store.attempts(job.id)
            if attempts:
                found[job.id] = max(attempts, key=lambda a: a.number)
        return found

    async def stored_jobs(self, keys: Iterable[str]) -> tuple[Job, ...]:
        """Ended jobs that the engine does not keep any more: of an array of which it knows nothing all rows, so that
        it knows what the whole array has come to."""
        found: dict[int, Job] = {}
        for key in keys:
            for job in await self._stored(read_key(key)):
                found[job.id] = job
        return tuple(job for job in found.values() if job.state.final)

    async def _stored(self, wanted: Key) -> Sequence[Job]:
        store, known = self.loop.store, self.loop.engine.state.arrays.known
        if wanted.single is not None and wanted.job_id in known:
            row = await self.loop.read(lambda: store.element(wanted.job_id, wanted.single or 0))
            return () if row is None else (row,)
        job = await self.loop.read(lambda: store.job(wanted.job_id))
        if job is None or job.array is None:
            return () if job is None else (job,)
        if wanted.chosen is None and job.array.array_id != job.id and job.array.array_id in known:
            return (job,)
        array_id = job.array.array_id
        return await self.loop.read(lambda: store.array(array_id))


def body_of(call: Call, *names: str) -> dict[str, Any]:
    """The body as an object with no other fields than these. Raises UsageError."""
    body = call.body if call.body is not None else {}
    if not isinstance(body, dict):
        raise UsageError("the body is not a JSON object", "see docs/api.md")
    for name in body:
        if name not in names:
            raise UsageError(f"unknown field {name!r}", f"known: {', '.join(names)}")
    return body
