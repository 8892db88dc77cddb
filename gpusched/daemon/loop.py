"""The heart of the daemon: take what waits in the inbox, handle it, commit it, answer, then act.

One batch:
1. all events that wait are handled by the engine, in order, followed by one scheduling cycle;
2. the changes are committed in one transaction, in the writer thread: what arrives meanwhile is the next batch,
   so that everyone who waits shares one fsync;
3. only then are the callers answered and the actions performed.

If the commit fails, or the engine raises, nothing of the batch is answered or performed: the engine's state is thrown
away and rebuilt from the database, the world is observed anew, and the daemon is degraded until a write succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gpusched.engine.engine import Engine
from gpusched.failpoints import failpoint
from gpusched.model.actions import Action
from gpusched.model.changes import Reply, Step
from gpusched.model.errors import Degraded, GpuschedError
from gpusched.model.events import Event, JobSubmitted, Woke
from gpusched.ports import Clock, Store, StoreError

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE = 0.03  # seconds that the news of a started attempt may wait for company
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 30.0  # seconds before the engine is rebuilt, doubled with each failure in a row
LONGEST_SLEEP = 30.0  # seconds; this loop's clock stands still while the machine is suspended, deadlines do not
RETRY = 2.0  # seconds between attempts to leave the degraded mode


class Loop:
    """Owns the engine, the inbox and the writer thread."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        fresh_engine: Callable[[], Engine],
        perform: Callable[[Sequence[Action]], None],
        observe: Callable[[Engine], Awaitable[Sequence[Event]]],
    ) -> None:
        """fresh_engine: knows only the rules. observe: the devices, and what became of an engine's attempts."""
        self.store = store
        self.clock = clock
        self.engine = fresh_engine()
        self.degraded: str | None = None
        self.on_step: list[Callable[[Step], None]] = []
        self._fresh_engine = fresh_engine
        self._perform = perform
        self._observe = observe
        self._inbox: list[tuple[Event, asyncio.Future[Reply] | None]] = []
        self._arrived = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="gpusched-writer")
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._failures = 0  # batches in a row that could not be recorded
        self._patience: asyncio.TimerHandle | None = None

    # ---- for everybody --------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Put an event into the inbox."""
        self._inbox.append((event, None))
        self._arrived.set()

    def post_soon(self, event: Event) -> None:
        """Put in an event that nobody waits for: it shares the commit of whatever comes within PATIENCE."""
        self._inbox.append((event, None))
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE, self._arrived.set)

    async def ask(self, event: Event) -> Any:
        """Put a request into the inbox and wait until it is durable. Raises the error that the engine replies."""
        if self.degraded and isinstance(event, JobSubmitted):
            raise Degraded(f"no new jobs are taken: {self.degraded}", "see: gpusched doctor")
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._inbox.append((event, answer))
        self._arrived.set()
        reply = await answer
        if isinstance(reply, GpuschedError):
            raise reply
        return reply

    async def read(self, query: Callable[[], T]) -> T:
        """Run a query of the store in the writer thread. Raises Degraded when the store cannot answer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, query)
        except StoreError as error:
            raise Degraded(error.message, error.hint) from None

    # ---- the loop -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Rebuild the engine from the store and the world, and handle what that shows, before anybody can ask.

        A store that can be read but not written, or that has no reserve left, makes it begin in the degraded mode.
        Raises StoreError if the store cannot be read.
        """
        await self._rebuild()
        try:
            await self._check()
        except StoreError as error:
            log.error("no new jobs are taken: %s (%s)", error.message, error.hint)
            self.degraded = error.message
            self._try_later()
        await self._turn_of_inbox()

    async def run(self) -> None:
        """Handle batches for ever."""
        while True:
            await self._arrived.wait()
            await self._turn_of_inbox()

    async def _turn_of_inbox(self) -> None:
        self._arrived.clear()
        batch, self._inbox = self._inbox, []
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if batch:
            await self.turn(batch)

    async def turn(self, batch: list[tuple[Event, asyncio.Future[Reply] | None]]) -> None:
        """One batch, from handling to acting."""
        try:
            now = self.clock.now()
            step = self.engine.answered(self.engine.handle([event for event, _ in batch], now), now)
            if step.changes:
                await self._commit(step)
        except StoreError as error:
            await self._fail(batch, error.message, error.hint)
            return
        except Exception as error:
            log.exception("the engine failed on %s", [type(event).__name__ for event, _ in batch])
            await self._fail(batch, f"internal error: {error}", "please report it, with the daemon's log")
            return
        self._failures = 0
        for (_, answer), reply in zip(batch, step.replies, strict=True):
            if answer is not None and not answer.done():
                answer.set_result(reply)
        self._guarded(lambda: self._perform(step.actions))
        for listener in self.on_step:
            self._guarded(lambda tell=listener: tell(step))  # type: ignore[misc]
        self._arm(step)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            log.exception("acting on a committed step failed; the next start of the daemon looks at it again")

    async def _commit(self, step: Step) -> None:
        failpoint("before-commit")
        await asyncio.get_running_loop().run_in_executor(self._writer, self.store.commit, [step.changes])
        failpoint("after-commit")

    def _arm(self, step: Step) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if step.wake_boot is not None:
            delay = max(0.0, step.wake_boot - self.clock.now().boot) + 0.001
            self._timer = asyncio.get_running_loop().call_later(min(delay, LONGEST_SLEEP), self.post, Woke())

    async def _fail(
        self, batch: list[tuple[Event, asyncio.Future[Reply] | None]], message: str, hint: str
    ) -> None:
        log.error("nothing of this batch was recorded: %s (%s)", message, hint)
        self.degraded = message
        self._failures += 1
        await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures))  # what fails again must not spin
        try:
            await self._rebuild()
        except StoreError as error:
            self._refuse(batch, message, hint)
            await self._rebuild_when_possible(error)
        self._refuse(batch, message, hint)
        self._try_later()

    def _refuse(self, batch: list[tuple[Event, asyncio.Future[Reply] | None]], message: str, hint: str) -> None:
        for _, answer in batch:
            if answer is not None and not answer.done():
                answer.set_result(Degraded(f"it was not recorded: {message}", hint or "see: gpusched doctor"))

    async def _rebuild_when_possible(self, trouble: StoreError) -> None:
        while True:
            self.degraded = trouble.message
            log.error("the database cannot be read: %s", trouble.message)
            self._refuse([each for each in self._inbox if each[1] is not None], trouble.message, trouble.hint)
            self._inbox = [each for each in self._inbox if each[1] is None]  # nobody waits for ever
            await asyncio.sleep(RETRY)
            try:
                await self._rebuild()
                return
            except StoreError as error:
                trouble = error

    def _try_later(self) -> None:
        if self._retry is None:  # one at a time, however many batches have failed meanwhile
            self._retry = asyncio.get_running_loop().call_later(RETRY, self._try_to_recover)

    def _try_to_recover(self) -> None:
        self._retry = None
        self._recovering = asyncio.get_running_loop().create_task(self.recover())

    async def recover(self) -> None:
        """Leave the degraded mode if the store takes a write again, else try later."""
        try:
            await self._check()
        except StoreError as error:
            self.degraded = error.message
            self._try_later()
            return
        log.warning("the database takes writes again")
        self.degraded = None

    async def _check(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self.store.check)

    async def _rebuild(self) -> None:
        """State from the database, then what the world shows, through the one door."""
        snapshot = await asyncio.get_running_loop().run_in_executor(self._writer, self.store.load)
        engine = self._fresh_engine()
        engine.restore(snapshot, self.clock.now())
        engine.view.durations.take_in()  # now, while nobody waits for an answer yet
        self.engine = engine
        for event in await self._observe(engine):
            self.post(event)

    async def close(self) -> None:
        """Finish what is in the writer thread and let go of the store."""
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        await asyncio.get_running_loop().run_in_executor(self._writer, self.store.close)
        self._writer.shutdown()
