"""Performs the engine's actions. Each is safe to repeat; none of them blocks the loop for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from gpusched.daemon.loop import Loop
from gpusched.daemon.orders import Orders
from gpusched.daemon.sampling import Sampler
from gpusched.daemon.watch import Watcher
from gpusched.model.actions import Action, Ask, Forget, Kill, Launch, LookAgain
from gpusched.model.errors import GpuschedError
from gpusched.model.events import AttemptExited
from gpusched.model.job import AttemptKey
from gpusched.model.state import Outcome, OutcomeKind
from gpusched.ports import Launcher, LaunchError

log = logging.getLogger(__name__)
FORGET_AFTER = 0.25  # seconds
AGAIN = 1.0  # seconds after which what failed (no room on the disk, no free descriptor) is tried again
LAST_STARTS = 30.0  # seconds that starts which are under way have when the daemon ends


class Performer:
    def __init__(self, loop: Loop, launcher: Launcher, watcher: Watcher, sampler: Sampler, orders: Orders) -> None:
        self._loop = loop
        self._launcher = launcher
        self._watcher = watcher
        self._sampler = sampler
        self._orders = orders
        self._starting: dict[AttemptKey, asyncio.Task[None]] = {}
        self._closing = False

    def __call__(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._starting[action.attempt] = asyncio.get_running_loop().create_task(self._launch(action))
                case Ask():
                    self._after_start(action.attempt, lambda ask=action: self._ask(ask))  # type: ignore[misc]
                case Kill(key):
                    self._after_start(key, lambda key=key: self._kill(key))  # type: ignore[misc]
                case LookAgain():
                    self._sampler.look_again_soon()
                case Forget(key):  # in no hurry: whoever waits for the devices is launched first
                    asyncio.get_running_loop().call_later(FORGET_AFTER, self._forget, key)
                case _:
                    assert_never(action)

    def _ask(self, ask: Ask) -> None:
        try:
            self._launcher.ask(ask.attempt, ask.what, cause=ask.cause, deadline=ask.deadline, signal=ask.signal)
        except OSError as error:  # what was not asked to save would lose its work at the end of its grace period
            log.error("attempt %s could not be asked: %s", ask.attempt, error)
            asyncio.get_running_loop().call_later(AGAIN, self._once_more, ask.attempt, lambda: self._ask(ask))

    def _kill(self, key: AttemptKey) -> None:
        try:
            self._launcher.kill(key)
        except OSError as error:
            log.error("attempt %s could not be killed: %s", key, error)
            asyncio.get_running_loop().call_later(AGAIN, self._once_more, key, lambda: self._kill(key))

    def _once_more(self, key: AttemptKey, act: Callable[[], None]) -> None:
        if not self._closing and self._lives(key):
            self._after_start(key, act)

    def _lives(self, key: AttemptKey) -> bool:
        attempt = self._loop.engine.state.attempt(key)
        return attempt is not None and attempt.live

    def _forget(self, key: AttemptKey) -> None:
        self._after_start(key, lambda: self._watcher.forget(key))

    def _after_start(self, key: AttemptKey, act: Callable[[], None]) -> None:
        """Act now, or as soon as the start of this attempt that is under way has been handed over."""
        starting = self._starting.get(key)
        if starting is None:
            self._guarded(key, act)
        else:
            starting.add_done_callback(lambda _: self._guarded(key, act))

    def _guarded(self, key: AttemptKey, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # whatever it is, the actions that follow are not to suffer for it
            log.exception("acting on attempt %s failed", key)

    async def _launch(self, action: Launch) -> None:
        key = action.attempt
        try:
            await self._start(action)
        except Exception as error:
            expected = isinstance(error, (LaunchError, OSError, GpuschedError))
            log.error("attempt %s could not be started: %s", key, error, exc_info=None if expected else error)
            if await self._taken_back(key):
                outcome = Outcome(OutcomeKind.NEVER_STARTED, text=str(error) or type(error).__name__)
                self._loop.post(AttemptExited(key, outcome))
                return
        finally:
            self._starting.pop(key, None)
        attempt = self._loop.engine.state.attempt(key)
        if attempt is not None and attempt.live:
            self._watcher.follow(attempt)

    async def _taken_back(self, key: AttemptKey) -> bool:
        """Whether the start that failed can never happen any more. A full disk can forbid even that: then later."""
        while True:
            try:
                return self._launcher.revoke(key)
            except OSError as error:
                log.error("the start of attempt %s cannot be taken back yet: %s", key, error)
            await asyncio.sleep(AGAIN)

    async def _start(self, action: Launch) -> None:
        order = await self._orders.prepare(action)
        if self._lives(action.attempt):  # the engine was rebuilt meanwhile, perhaps, and has taken the start back
            await self._launcher.start(order)

    async def close(self) -> None:
        """Let starts that are under way be handed over; the next daemon looks at what hangs."""
        self._closing = True
        starting = list(self._starting.values())
        if starting:
            _, hanging = await asyncio.wait(starting, timeout=LAST_STARTS)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
