"""The daemon's side of NVML: a DeviceProbe that asks the worker process, with a deadline for every answer.

It never raises and never blocks the loop; trouble is a sentence in the sample, beside the devices as last known.

Never more than one stuck worker. A hang is told as:
 1. a request passes its deadline; the worker is killed, its caller gets the last known devices and an error;
 2. while the kernel has not reaped it (a call into the driver can be beyond SIGKILL) nothing is started on top of it;
 3. once it is gone the next request, after a back-off of 1 to 60 s, starts a fresh one.
Starting is allowed longer than a request: without persistence mode NVML's first init takes seconds per GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from gpusched.devices.reading_json import decode
from gpusched.devices.worker_process import WorkerEnded, WorkerProcess
from gpusched.model.device import DeviceReading, Health, ProbeSample

_START_DEADLINE = 60.0
_LONGEST_ABSENT = 30.0  # seconds between two looks for a driver that is not there
_LONGEST_BROKEN = 60.0  # seconds between two starts of a worker that hangs or crashes
_UNIDENTIFIED = "UNIDENTIFIED-"  # nvml.py's uuid of a device that does not tell its own


class NvmlProbe:
    """Reads NVIDIA devices through a worker process. Safe to call concurrently; one request is on its way at a time."""

    def __init__(
        self, nvml_library: str | None = None, deadline: float = 5.0, *, start_deadline: float = _START_DEADLINE
    ) -> None:
        """`nvml_library`: absolute path of libnvidia-ml instead of the system's. `deadline`: seconds for any answer."""
        self._library = nvml_library
        self._deadline = deadline
        self._start_deadline = start_deadline
        self._turn = asyncio.Lock()
        self._worker: WorkerProcess | None = None
        self._condemned = False  # the worker was killed and has not been reaped yet
        self._known: dict[str, DeviceReading] = {}
        self._groups: dict[str, str] = {}
        self._grouped: frozenset[str] = frozenset()  # the devices whose groups were asked for, with or without success
        self._driver: str | None = None
        self._trouble = ""
        self._troubles_in_a_row = 0
        self._quiet_until = 0.0
        self._closed = False

    async def sample(self) -> ProbeSample:
        """One reading of every device."""
        return await self._answer({"op": "sample"}, None)

    async def read(self, uuids: Sequence[str]) -> ProbeSample:
        """One fresh reading of these devices only."""
        return await self._answer({"op": "read", "uuids": list(uuids)}, frozenset(uuids))

    async def close(self) -> None:
        """End the worker. A stuck one is left to the kernel."""
        self._closed = True
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.close()

    async def _answer(self, request: dict[str, Any], uuids: frozenset[str] | None) -> ProbeSample:
        until = self._now() + self._deadline
        try:
            async with asyncio.timeout_at(until):
                await self._turn.acquire()
        except TimeoutError:
            return self._last_known(uuids, "The NVML worker is still busy with an earlier question.")
        try:
            return await self._ask(request, uuids, until)
        except Exception as error:  # the port promises that trouble is in the sample
            self._condemn()
            return self._failed(uuids, f"Reading the GPUs failed: {type(error).__name__}: {error}.", _LONGEST_BROKEN)
        finally:
            self._turn.release()

    async def _ask(self, request: dict[str, Any], uuids: frozenset[str] | None, until: float) -> ProbeSample:
        if self._condemned and not self._reaped():
            return self._last_known(
                uuids, f"{self._trouble} Its process cannot be ended yet; if this lasts, reboot the machine."
            )
        if self._now() < self._quiet_until:
            return self._last_known(uuids, self._trouble)
        try:
            return await self._exchange(request, uuids, until)
        except WorkerEnded as ended:
            self._drop_worker()
            if not ended.planned:
                return self._failed(uuids, f"{ended}. A fresh one is started.", _LONGEST_BROKEN)
        try:  # it left in good order before it saw the request: ask a fresh one, once
            return await self._exchange(request, uuids, until)
        except WorkerEnded as ended:
            self._drop_worker()
            return self._failed(uuids, f"{ended}. A fresh one is started.", _LONGEST_BROKEN)

    async def _exchange(self, request: dict[str, Any], uuids: frozenset[str] | None, until: float) -> ProbeSample:
        """One question to the present worker, started if need be. Raises WorkerEnded."""
        if self._closed:
            return self._last_known(uuids, "The probe is closed.")
        if self._worker is None:
            self._worker = await WorkerProcess.spawn(self._library)
        worker = self._worker
        try:
            async with asyncio.timeout_at(until):
                hello = await worker.greet()
        except TimeoutError:
            return self._slow_start(worker, uuids)
        if hello["error"] is not None:
            worker.hello = {**hello, "error": None}  # told once; a worker that stays tries again when asked again
            return self._failed(uuids, hello["error"], _LONGEST_ABSENT)
        devices: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout_at(until):
                done = await worker.ask(request, devices)
        except TimeoutError:
            self._condemn()
            self._remember(decode(body) for body in devices)
            return self._failed(uuids, self._stuck(len(devices), uuids), _LONGEST_BROKEN)
        readings = [decode(body) for body in devices]
        if done["error"] is not None:
            return self._failed(uuids, done["error"], _LONGEST_ABSENT)
        self._driver, self._trouble, self._troubles_in_a_row = done["driver"], "", 0
        if uuids is None:  # only a look at all of them can tell their groups
            await self._group(worker, readings, until)
        return self._told(readings, uuids)

    async def _group(self, worker: WorkerProcess, readings: list[DeviceReading], until: float) -> None:
        """Learn the groups of devices that are new. Whatever goes wrong with that is asked for never again, and is no
        trouble: the readings are there."""
        new = {reading.uuid for reading in readings if reading.health is Health.OK} - self._grouped
        if not new:
            return
        self._grouped |= new
        try:
            async with asyncio.timeout_at(until):
                done = await worker.ask({"op": "topology"}, [])
        except TimeoutError:
            self._condemn()
        except WorkerEnded:
            self._drop_worker()
        else:
            self._groups |= done.get("groups") or {}

    def _slow_start(self, worker: WorkerProcess, uuids: frozenset[str] | None) -> ProbeSample:
        waited = self._now() - worker.born
        if waited < self._start_deadline:
            return self._last_known(
                uuids,
                f"NVML has been starting for {waited:.0f} s (slow without persistence mode: `sudo nvidia-smi -pm 1`).",
            )
        self._condemn()
        return self._failed(
            uuids, f"NVML did not start within {waited:.0f} s. Look for Xid lines in `dmesg`.", _LONGEST_BROKEN
        )

    def _told(self, readings: list[DeviceReading], uuids: frozenset[str] | None) -> ProbeSample:
        """What a complete answer says, with the devices that it should have named and did not."""
        readings = self._remember(readings)
        answered = {reading.uuid for reading in readings}
        for uuid, known in list(self._known.items()):
            if uuid not in answered and (uuids is None or uuid in uuids):
                readings.append(_missing(known))
                self._known[uuid] = readings[-1]
        readings.sort(key=lambda reading: (reading.index, reading.uuid))
        return ProbeSample(tuple(readings), self._driver)

    def _remember(self, readings: Iterable[DeviceReading]) -> list[DeviceReading]:
        """Note the devices and return them; one that does not tell its uuid gets the one known at its index."""
        taken: list[DeviceReading] = []
        for reading in readings:
            if reading.uuid.startswith(_UNIDENTIFIED):
                known = next((each for each in self._known.values() if each.index == reading.index), None)
                if known is not None:
                    reading = replace(_without_values(known), health=Health.FAILED, fault=reading.fault)
            if not reading.uuid.startswith(_UNIDENTIFIED):
                reading = replace(reading, group=self._groups.get(reading.uuid, ""))
                self._known[reading.uuid] = reading
            taken.append(reading)
        return taken

    def _last_known(self, uuids: frozenset[str] | None, error: str) -> ProbeSample:
        devices = [each for each in self._known.values() if uuids is None or each.uuid in uuids]
        devices.sort(key=lambda reading: (reading.index, reading.uuid))
        return ProbeSample(tuple(devices), self._driver, error)

    def _failed(self, uuids: frozenset[str] | None, error: str, longest: float) -> ProbeSample:
        """Trouble: say it, and leave NVML alone for a while."""
        self._quiet_until = self._now() + min(longest, 2.0 ** min(self._troubles_in_a_row, 10))
        self._troubles_in_a_row += 1
        self._trouble = error
        return self._last_known(uuids, error)

    def _stuck(self, answered: int, uuids: frozenset[str] | None) -> str:
        devices = self._last_known(uuids, "").devices
        where = f"GPU {devices[answered].index} ({devices[answered].uuid})" if answered < len(devices) else "NVML"
        return f"{where} did not answer within {self._deadline:g} s. Look for Xid lines in `dmesg`."

    def _condemn(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._condemned = True

    def _reaped(self) -> bool:
        if self._worker is not None and not self._worker.gone:
            return False
        self._drop_worker()
        return True

    def _drop_worker(self) -> None:
        self._worker = None
        self._condemned = False

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _without_values(known: DeviceReading) -> DeviceReading:
    """The device without what only a present reading can say."""
    return replace(
        known,
        used_mib=0,
        processes=(),
        processes_known=False,
        utilization=None,
        temperature_c=None,
        power_w=None,
    )


def _missing(known: DeviceReading) -> DeviceReading:
    fault = "the driver no longer lists this GPU: look for Xid lines in `dmesg`, then reset it or reboot"
    return replace(_without_values(known), health=Health.MISSING, fault=fault)
