"""The daemon's loop with a store that fails: nothing is answered or performed that is not durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from gpusched.daemon import loop as loop_module
from gpusched.daemon.clock import SystemClock
from gpusched.daemon.loop import Loop
from gpusched.engine.engine import Engine
from gpusched.model.actions import Action, Ask, Launch
from gpusched.model.changes import Changes, Snapshot, Submitted
from gpusched.model.clock import Instant
from gpusched.model.errors import Degraded, UsageError
from gpusched.model.events import AttemptStarted, CancelRequested, Event, JobSubmitted, ServiceStarted
from gpusched.model.job import AttemptKey, Caller, JobSpec, Request
from gpusched.model.rules import Rules
from gpusched.ports import Clock, StoreError
from gpusched.store.memory import MemoryStore

ME = Caller(1000, 1000, "me")
CPU_ONLY = JobSpec(("true",), "/", request=Request(gpus=0))


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


class FullDisk(MemoryStore):
    """A store whose disk can be full."""

    full = False
    commits = 0

    def commit(self, changes: Sequence[Changes]) -> None:
        self.commits += 1
        if self.full:
            raise StoreError("the disk is full", "free some space")
        super().commit(changes)

    def check(self) -> None:
        if self.full:
            raise StoreError("the disk is full", "free some space")


@asynccontextmanager
async def running(store: FullDisk, clock: Clock | None = None) -> AsyncIterator[tuple[Loop, list[Action]]]:
    performed: list[Action] = []

    async def nothing_new(_engine: Engine) -> list[Event]:
        return [ServiceStarted()]

    loop = Loop(store, clock or SystemClock(), lambda: Engine(Rules.default(), "boot"), performed.extend, nothing_new)
    await loop.start()
    worker = asyncio.create_task(loop.run())
    try:
        yield loop, performed
    finally:
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker
        await loop.close()


async def test_a_submit_is_answered_and_launched_only_after_its_commit() -> None:
    store = FullDisk()
    async with running(store) as (loop, performed):
        reply: Submitted = await loop.ask(JobSubmitted(CPU_ONLY, ME))
        assert store.job(reply.job_ids[0]) is not None
        assert [type(action) for action in performed] == [Launch]


async def test_what_cannot_be_recorded_is_neither_answered_as_done_nor_performed() -> None:
    store = FullDisk()
    async with running(store) as (loop, performed):
        store.full = True
        with pytest.raises(Degraded, match="disk is full"):
            await loop.ask(JobSubmitted(CPU_ONLY, ME))
        assert performed == []
        assert not loop.engine.state.jobs, "the engine still believes in a job that nobody recorded"


async def test_while_degraded_new_jobs_are_refused_and_ended_ones_can_still_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "RETRY", 0.02)
    store = FullDisk()
    async with running(store) as (loop, _):
        held: Submitted = await loop.ask(JobSubmitted(CPU_ONLY, ME, hold=True))
        store.full = True
        with pytest.raises(Degraded):
            await loop.ask(JobSubmitted(CPU_ONLY, ME))
        before = store.commits
        with pytest.raises(Degraded, match="no new jobs"):
            await loop.ask(JobSubmitted(CPU_ONLY, ME))
        assert store.commits == before, "a submit went to a store that is known to fail"
        store.full = False
        (answer,) = await loop.ask(CancelRequested((held.key,), ME))
        assert answer.error is None
        await loop.recover()  # as the timer does
        assert loop.degraded is None
        await loop.ask(JobSubmitted(CPU_ONLY, ME))


async def test_a_bug_in_the_engine_costs_the_batch_and_not_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FullDisk()
    async with running(store) as (loop, _):
        kept: Submitted = await loop.ask(JobSubmitted(CPU_ONLY, ME, hold=True))

        def explode(*_: object) -> None:
            raise AssertionError("a bug")

        monkeypatch.setattr(loop.engine, "handle", explode)
        with pytest.raises(Degraded, match="a bug"):
            await loop.ask(CancelRequested((kept.key,), ME))
        (answer,) = await loop.ask(CancelRequested((kept.key,), ME))
        assert answer.error is None, "the rebuilt engine does not know the job"


async def test_requests_that_wait_share_a_commit() -> None:
    store = FullDisk()
    async with running(store) as (loop, _):
        before = store.commits
        await asyncio.gather(*(loop.ask(JobSubmitted(CPU_ONLY, ME, hold=True)) for _ in range(50)))
        assert store.commits - before <= 2


async def test_one_refused_request_does_not_spoil_the_batch() -> None:
    async with running(FullDisk()) as (loop, _):
        bad = JobSubmitted(JobSpec(("true",), "/", qos="nope", request=Request(gpus=0)), ME)
        good = JobSubmitted(CPU_ONLY, ME)
        replies = await asyncio.gather(loop.ask(bad), loop.ask(good), return_exceptions=True)
        assert isinstance(replies[0], UsageError)
        assert isinstance(replies[1], Submitted)


class Unreadable(FullDisk):
    """A store that can neither be written nor read for a while."""

    broken = False

    def commit(self, changes: Sequence[Changes]) -> None:
        if self.broken:
            raise StoreError("the disk is gone")
        super().commit(changes)

    def load(self) -> Snapshot:
        if self.broken:
            raise StoreError("the disk is gone")
        return super().load()


async def test_while_the_database_cannot_be_read_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "RETRY", 0.02)
    store = Unreadable()
    async with running(store) as (loop, _):
        kept: Submitted = await loop.ask(JobSubmitted(CPU_ONLY, ME, hold=True))
        store.broken = True
        for _ in range(3):
            async with asyncio.timeout(30):
                with pytest.raises(Degraded, match="disk is gone"):
                    await loop.ask(CancelRequested((kept.key,), ME))
        store.broken = False
        await soon(lambda: loop.degraded is None)
        (answer,) = await loop.ask(CancelRequested((kept.key,), ME))
        assert answer.error is None


async def test_a_deadline_that_passed_while_the_machine_was_suspended_is_seen_soon_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "LONGEST_SLEEP", 0.02)
    asleep = 0.0

    class Suspended(SystemClock):
        def now(self) -> Instant:
            return super().now().later(asleep)

    async with running(FullDisk(), Suspended()) as (loop, performed):
        reply: Submitted = await loop.ask(JobSubmitted(replace(CPU_ONLY, time_limit=3600.0), ME))
        (job,) = reply.job_ids
        loop.post(AttemptStarted(AttemptKey(job, 1), 7))
        await soon(lambda: loop.engine.view.live[job].started is not None)
        asleep = 4000.0
        await soon(lambda: any(isinstance(action, Ask) for action in performed))
