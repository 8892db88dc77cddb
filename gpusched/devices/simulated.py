"""Simulated devices on which real processes run: a DeviceProbe for machines without a GPU, the demo and the tests.

A process holds a device if the CUDA_VISIBLE_DEVICES of its environment names the device's uuid (holders.py). A device's
memory in use is the memory of its holders (divided evenly by a process that holds several), its utilisation their CPU
use since the previous sample, capped at 100 %; temperature and power follow from that. The uuids carry a namespace, so
that two daemons on one machine do not see each other's processes. Faults come from a file (faults.py tells its format).

Looking for holders takes some ten microseconds per new process and is done on the loop; adding up their memory can take
milliseconds (or for ever, if the kernel is busy with one of them) and is done in a thread, with a deadline. It never
makes up a device, a process or a value that was not asked for by the spec or the faults file.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpusched.devices import proc
from gpusched.devices.faults import ESSENTIAL, OPTIONAL, DeviceFaults, Faults, FaultsFile
from gpusched.devices.holders import HeldMemory, Holder, Holders
from gpusched.devices.simulated_spec import SimulatedDevice, SimulatedSpec, parse_simulated
from gpusched.model.device import DeviceProcess, DeviceReading, Health, ProbeSample

__all__ = ["SimulatedProbe", "SimulatedSpec", "parse_simulated"]

_MIB = 1 << 20
_POWER_LIMIT_W = 300.0
_IDLE_W, _BUSY_W = 35.0, 285.0
_COOL_C, _HOT_C = 31.0, 78.0
_WARMING_S = 20.0  # time constant of the temperature
_SHORTEST = 0.2  # seconds; CPU time comes in ticks of 10 ms, so a shorter span says little


@dataclass(frozen=True, slots=True)
class _Activity:
    """What moves slowly on one device: carried from sample to sample."""

    utilization: int = 0
    temperature_c: float = _COOL_C


class SimulatedProbe:
    """The simulated devices of one daemon. Safe to call concurrently."""

    def __init__(
        self, spec: SimulatedSpec, namespace: str, faults: Path | None = None, *, deadline: float = 5.0
    ) -> None:
        """`namespace`: any text that is this daemon's alone (its state directory). `deadline`: seconds per answer."""
        self._devices = {spec.uuid(index, namespace): device for index, device in enumerate(spec.devices)}
        self._holders = Holders(self._devices)
        self._memory = HeldMemory()
        self._faults = FaultsFile(faults)
        self._deadline = deadline
        self._thread = ThreadPoolExecutor(1, "simulated-memory")
        self._stuck: asyncio.Future[dict[int, int]] | None = None
        self._activity = dict.fromkeys(self._devices, _Activity())
        self._cpu: dict[tuple[int, int], int] = {}
        self._sampled_at: float | None = None
        self._last: dict[str, DeviceReading] = {}

    @property
    def uuids(self) -> tuple[str, ...]:
        """The devices' uuids, in the order of their index."""
        return tuple(self._devices)

    async def sample(self) -> ProbeSample:
        """One reading of every device."""
        return await self._answer(self.uuids, sampling=True)

    async def read(self, uuids: Sequence[str]) -> ProbeSample:
        """One fresh reading of these devices only. Utilisation is that of the last sample."""
        return await self._answer([uuid for uuid in self._devices if uuid in set(uuids)], sampling=False)

    async def close(self) -> None:
        """Let go of the thread; one that is stuck in the kernel is left behind."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, uuids: Sequence[str], sampling: bool) -> ProbeSample:
        faults, trouble = self._faults.current()
        if faults.hang_ms:
            await asyncio.sleep(min(faults.hang_ms / 1000, self._deadline))
        if faults.hang_ms / 1000 >= self._deadline:
            return self._last_known(uuids, f"The simulated devices did not answer within {self._deadline:g} s.")
        if faults.error is not None:
            return self._last_known(uuids, faults.error)
        try:
            holders = self._holders.scan()
            memory = await self._measure([each for each in holders if not set(uuids).isdisjoint(each.devices)])
        except TimeoutError:
            return self._last_known(
                uuids, f"The memory of the processes on the simulated devices was not told within {self._deadline:g} s."
            )
        except (OSError, RuntimeError) as error:  # /proc is not there; the probe is closed
            return self._last_known(uuids, f"The processes of this machine cannot be read: {error}.")
        if sampling:
            self._advance(holders)
        readings = [self._reading(uuid, holders, memory, faults) for uuid in uuids]
        self._last |= {reading.uuid: reading for reading in readings}
        return ProbeSample(tuple(readings), "simulated", trouble)

    def _last_known(self, uuids: Collection[str], error: str) -> ProbeSample:
        return ProbeSample(tuple(self._last[uuid] for uuid in uuids if uuid in self._last), "simulated", error)

    async def _measure(self, holders: list[Holder]) -> Mapping[int, int]:
        """Bytes by pid. Raises TimeoutError, at once while an earlier question is stuck."""
        if not holders:
            return {}
        if self._stuck is not None and not self._stuck.done():
            raise TimeoutError
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._memory.of, holders)
        done, _ = await asyncio.wait([future], timeout=self._deadline)
        if not done:
            self._stuck = future
            raise TimeoutError
        return future.result()

    def _advance(self, holders: Collection[Holder]) -> None:
        """Work out utilisation and temperature for the time since the previous sample."""
        now = asyncio.get_running_loop().time()
        elapsed = None if self._sampled_at is None else now - self._sampled_at
        if elapsed is not None and elapsed < _SHORTEST:
            return
        busy = dict.fromkeys(self._devices, 0.0)
        for holder in holders:
            before = self._cpu.get((holder.pid, holder.start))
            # One that was not there before: over its whole life, but over no less than the span that is looked at.
            span = elapsed if before is not None and elapsed else max(holder.age, elapsed or _SHORTEST)
            percent = 100 * (holder.cpu - (before or 0)) / proc.TICKS_PER_SECOND / span
            for uuid in holder.devices:
                busy[uuid] += percent
        for uuid, percent in busy.items():
            target = _COOL_C + (_HOT_C - _COOL_C) * min(percent, 100.0) / 100
            moved = 1 - math.exp(-(elapsed or 0.0) / _WARMING_S)
            warmth = self._activity[uuid].temperature_c
            self._activity[uuid] = _Activity(round(min(percent, 100.0)), warmth + (target - warmth) * moved)
        self._cpu = {(holder.pid, holder.start): holder.cpu for holder in holders}
        self._sampled_at = now

    def _reading(
        self, uuid: str, holders: Collection[Holder], memory: Mapping[int, int], faults: Faults
    ) -> DeviceReading:
        index = list(self._devices).index(uuid)
        device, activity, wrong = self._devices[uuid], self._activity[uuid], faults.of(index, uuid)
        processes = [
            DeviceProcess(holder.pid, max(1, round(memory[holder.pid] / len(holder.devices) / _MIB)))
            for holder in holders
            if uuid in holder.devices and memory.get(holder.pid)
        ]
        if wrong.foreign_mib:
            processes.append(DeviceProcess(proc.NO_REAL_PID + index, wrong.foreign_mib))
        used = sum(process.used_mib or 0 for process in processes) + wrong.residual_mib
        reading = DeviceReading(
            uuid=uuid,
            index=index,
            name=device.name,
            total_mib=device.total_mib,
            used_mib=min(used, device.total_mib),  # as on a real device, which has no more
            processes=tuple(processes),
            utilization=activity.utilization,
            temperature_c=round(activity.temperature_c),
            power_w=round(_IDLE_W + (_BUSY_W - _IDLE_W) * activity.utilization / 100, 1),
            power_limit_w=_POWER_LIMIT_W,
            pci_bus_id=f"00000000:{index + 1:02X}:00.0",
            group=device.group,
        )
        return _faulty(reading, device, wrong)


def _faulty(reading: DeviceReading, device: SimulatedDevice, wrong: DeviceFaults) -> DeviceReading:
    """The reading as a device with these faults would give it."""
    unread = [name for name in wrong.fail if name in ESSENTIAL]
    if wrong.lost or wrong.missing or unread:
        fault = "the driver no longer lists this GPU" if wrong.missing else "the GPU is lost (fallen off the bus)"
        if unread and not (wrong.lost or wrong.missing):
            fault = f"its {unread[0]} cannot be read"
        return DeviceReading(
            uuid=reading.uuid,
            index=reading.index,
            name=device.name,
            total_mib=device.total_mib,
            used_mib=0,
            processes_known=False,
            pci_bus_id=reading.pci_bus_id,
            group=device.group,
            health=Health.MISSING if wrong.missing else Health.FAILED,
            fault=f"{fault} (injected by the faults file)",
        )
    if "processes" in wrong.fail:
        reading = replace(reading, processes=(), processes_known=False)
    unknown: dict[str, Any] = {name: None for name in OPTIONAL if name in wrong.fail}
    return replace(reading, **unknown)
