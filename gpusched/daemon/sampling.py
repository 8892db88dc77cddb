"""Samples of the devices: read, told apart (ours, foreign), put on the board, and posted when they change anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpusched.daemon.board import Board
from gpusched.daemon.watch import Watcher
from gpusched.model.device import Occupancy
from gpusched.model.events import DevicesSampled
from gpusched.ports import Clock, DeviceProbe

log = logging.getLogger(__name__)
SOON = 0.1  # seconds after which an ended attempt's devices are looked at again


class Sampler:
    def __init__(
        self,
        probe: DeviceProbe,
        watcher: Watcher,
        board: Board,
        clock: Clock,
        post: Callable[[DevicesSampled], None],
        devices_are_leaving: Callable[[], bool],
    ) -> None:
        self._probe = probe
        self._watcher = watcher
        self._board = board
        self._clock = clock
        self._post = post
        self._devices_are_leaving = devices_are_leaving
        self._last: tuple[object, ...] = ()
        self._soon: asyncio.TimerHandle | None = None
        self._busy = asyncio.Lock()

    async def sample(self) -> DevicesSampled:
        """Read all devices now, and post the reading if the engine could care."""
        async with self._busy:
            event = await self.read()
        facts = (event.error, *(_facts(o) for o in event.devices))
        if facts != self._last or self._devices_are_leaving():
            self._last = facts
            self._post(event)
        return event

    async def read(self) -> DevicesSampled:
        """Read all devices and put them on the board."""
        sample = await self._probe.sample()
        if sample.error is not None and sample.error != self._board.error:
            log.warning("devices: %s", sample.error)
        occupancy = self._watcher.attribute(sample)
        self._board.put_sample(sample, occupancy, self._clock.now().wall)
        return DevicesSampled(occupancy, sample.error)

    def look_again_soon(self) -> None:
        """An ended attempt was not seen to have left its devices: do not wait for the next regular sample."""
        if self._soon is None:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(SOON, self._look_again)

    def _look_again(self) -> None:
        self._soon = None
        self._task = asyncio.get_running_loop().create_task(self.sample())

    def forget_last(self) -> None:
        """After the engine was rebuilt: the next sample is posted whatever it says."""
        self._last = ()


def _facts(occupancy: Occupancy) -> tuple[object, ...]:
    """What of a sample can matter for a decision."""
    reading = occupancy.reading
    return (
        reading.uuid, reading.health, reading.total_mib, occupancy.own, occupancy.foreign_mib, occupancy.residual_mib
    )
