"""Reads NVIDIA devices through NVML. The only home of pynvml, and never imported by the daemon itself.

NVML may be absent, lie, hang or abort the process, so this module runs in the worker process (`nvml_worker.py`) behind
a deadline. It initialises NVML once and keeps it (an init per reading costs seconds where persistence mode is off),
tries each device on its own (one lost GPU must not hide the others) and treats every reading but identity and memory as
optional. It must not signal, or even look up, a process because NVML named its pid.

A device whose identity cannot be read at all gets the uuid `UNIDENTIFIED-<index>` and health FAILED; the daemon's side
puts the known uuid in its place if there is one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from gpusched.devices.topology import groups, numa_node
from gpusched.model.device import DeviceProcess, DeviceReading, Health

try:
    import pynvml
except ImportError:  # said in words by `start`
    pynvml = None

P = ParamSpec("P")
T = TypeVar("T")
MIB = 1 << 20
UNIDENTIFIED = "UNIDENTIFIED-"
_SAME_NODE = 40  # NVML_TOPOLOGY_NODE: nothing further apart than one NUMA node
_SIMULATE = (
    "To try gpusched without a GPU, start `gpusched daemon run --devices sim:4x24G`, or watch `gpusched demo`."
)
_INIT_FAULTS = {
    4: "This account may not open the NVIDIA devices. Check the permissions of /dev/nvidia* with `ls -l /dev/nvidia*`.",
    9: "Found no NVIDIA driver: its library is installed, but the kernel module is not loaded. If this machine has a "
    f"GPU, try `sudo modprobe nvidia` and look into `dmesg`. {_SIMULATE}",
    12: f"Found no NVIDIA driver (libnvidia-ml.so.1 is not installed). If this machine has a GPU, install its driver. "
    f"{_SIMULATE}",
    18: "The NVIDIA driver was upgraded, but the old kernel module is still loaded. Running jobs go on and nothing new "
    "starts. Reboot, or unload and reload the nvidia kernel modules.",
}
_DEVICE_FAULTS = {
    4: "this account may not open it: check the permissions of /dev/nvidia*",
    15: "the GPU is lost (fallen off the bus): look for Xid lines in `dmesg`, then reset it or reboot",
    16: "the GPU needs a reset: `nvidia-smi --gpu-reset`, or reboot",
    999: "the driver answers «unknown error»: look for Xid lines in `dmesg`; a reboot often helps",
}


class NvmlUnavailable(Exception):
    """NVML cannot answer for any device. The text is a sentence with what to do."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What does not change while a device sits in the machine."""

    uuid: str
    name: str
    pci_bus_id: str | None


class Nvml:
    """One NVML session. Methods may hang or abort the process; `start` first."""

    def __init__(self, library: str | None = None) -> None:
        """`library`: absolute path of libnvidia-ml, loaded in place of the one that the linker would find."""
        self._library = library
        self._identities: dict[int, _Identity] = {}
        self._totals: dict[int, int] = {}
        self._backing: tuple[str, int, int] | None = None
        self.driver: str | None = None
        self.started = False

    def start(self) -> None:
        """Load and initialise NVML. Raises NvmlUnavailable."""
        if pynvml is None:
            raise NvmlUnavailable(
                "The Python package nvidia-ml-py is not installed, so no GPU can be read: `pip install nvidia-ml-py`."
            )
        if self._library is not None:
            try:  # pynvml's own CDLL("libnvidia-ml.so.1") then finds it by its SONAME
                ctypes.CDLL(self._library)
            except OSError as error:
                raise NvmlUnavailable(
                    f"The NVML library {self._library} cannot be loaded ({error}). "
                    "Correct the option nvml_library, or leave it out to use the system's driver."
                ) from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlUnavailable(_init_fault(error)) from error
        self.started = True
        self.driver = _optional(pynvml.nvmlSystemGetDriverVersion)
        self._backing = _mapped_library()

    @property
    def stale(self) -> bool:
        """Is the loaded library no longer the one on disk? After an upgrade only a fresh process sees the truth."""
        if self._backing is None:
            return False
        path, device, inode = self._backing
        try:
            status = os.stat(path)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != (device, inode)

    def readings(self, uuids: Collection[str] | None = None) -> Iterator[DeviceReading]:
        """Read each device in the order of its index, or only those of `uuids`. Raises NvmlUnavailable."""
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML cannot count the GPUs: {_words(error)}. It is asked again.") from error
        if count == 0 and not self._identities:
            raise NvmlUnavailable(
                "The NVIDIA driver is loaded but finds no GPU. Look into `dmesg` and `lspci | grep -i nvidia`."
            )
        limit = pid_max()
        for index in range(count):
            known = self._identities.get(index)
            if uuids is not None and known is not None and known.uuid not in uuids:
                continue
            reading = self._reading(index, limit)
            if uuids is None or reading.uuid in uuids:
                yield reading

    def topology(self) -> dict[str, str]:
        """The group of each device that has been read, by uuid; empty where this driver does not tell it."""
        handles: dict[str, Any] = {}
        buses: dict[str, str | None] = {}
        for index, identity in sorted(self._identities.items()):
            handle = _optional(pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                handles[identity.uuid], buses[identity.uuid] = handle, identity.pci_bus_id

        def linked(one: str, other: str) -> bool:
            return bool(_optional(_nvlink, handles[one], handles[other]))

        def near(one: str, other: str) -> bool | None:
            level = _optional(pynvml.nvmlDeviceGetTopologyCommonAncestor, handles[one], handles[other])
            if level is not None:
                return int(level) <= _SAME_NODE
            nodes = numa_node(buses[one]), numa_node(buses[other])
            return None if None in nodes else nodes[0] == nodes[1]

        return groups(list(handles), linked, near)

    def _reading(self, index: int, limit: int) -> DeviceReading:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            identity = self._identities[index] = _identity(handle)
        except (pynvml.NVMLError, UnicodeDecodeError) as error:
            return self._failed(index, _device_fault("its identity cannot be read", error))
        try:
            total, used = _memory(handle)
        except pynvml.NVMLError as error:
            return self._failed(index, _device_fault("its memory cannot be read", error))
        if total <= 0:
            return self._failed(index, "the driver says that it has no memory: look for Xid lines in `dmesg`")
        self._totals[index] = total
        processes = _processes(handle, limit)
        power, power_limit = (_optional(_power, handle), _optional(_power_limit, handle))
        reading = DeviceReading(
            uuid=identity.uuid,
            index=index,
            name=identity.name,
            total_mib=total,
            used_mib=used,
            processes=processes or (),
            processes_known=processes is not None,
            utilization=_optional(_utilization, handle),
            temperature_c=_optional(_temperature, handle),
            power_w=power,
            power_limit_w=power_limit,
            pci_bus_id=identity.pci_bus_id,
        )
        if _optional(_mig, handle):
            fault = f"MIG mode is on and only whole GPUs are given out: `nvidia-smi -i {index} -mig 0` turns it off"
            return replace(reading, health=Health.FAILED, fault=fault)
        return reading

    def _failed(self, index: int, fault: str) -> DeviceReading:
        identity = self._identities.get(index, _Identity(f"{UNIDENTIFIED}{index}", "unknown GPU", None))
        return DeviceReading(
            uuid=identity.uuid,
            index=index,
            name=identity.name,
            total_mib=self._totals.get(index, 0),
            used_mib=0,
            processes_known=False,
            pci_bus_id=identity.pci_bus_id,
            health=Health.FAILED,
            fault=fault,
        )


def _nvlink(one: Any, other: Any) -> bool:
    """The two can reach each other's memory over NVLink, directly or through switches."""
    status = pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return bool(status == pynvml.NVML_P2P_STATUS_OK)


def _identity(handle: Any) -> _Identity:
    return _Identity(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=_optional(pynvml.nvmlDeviceGetName, handle) or "unknown GPU",
        pci_bus_id=_optional(_pci_bus_id, handle),
    )


def _pci_bus_id(handle: Any) -> str:
    bus_id = pynvml.nvmlDeviceGetPciInfo(handle).busId
    return str(bus_id.decode() if isinstance(bus_id, bytes) else bus_id)


def _memory(handle: Any) -> tuple[int, int]:
    """Total and used MiB as nvidia-smi shows them. Version 2 does not count what the driver reserves as used."""
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if error.value not in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED, 25):
            raise  # 25: the argument's version is not known, which older pynvml has no name for
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return info.total // MIB, -(-info.used // MIB)


def _utilization(handle: Any) -> int | None:
    value = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return value if 0 <= value <= 100 else None


def _temperature(handle: Any) -> int | None:
    """Degrees Celsius. The old call goes away in CUDA 14, the new one is not in older drivers (or older pynvml)."""
    modern = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)
    value = _optional(modern, handle, pynvml.NVML_TEMPERATURE_GPU) if modern else None
    if value is None:
        value = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return int(value) if -50 < value < 200 else None


def _power(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000


def _power_limit(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000


def _mig(handle: Any) -> bool:
    return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])


def _processes(handle: Any, limit: int) -> tuple[DeviceProcess, ...] | None:
    """Who holds memory: compute, graphics and MPS clients. None: the driver cannot list the compute processes."""
    entries = _process_list(handle, "Compute")
    if entries is None:
        return None
    for kind in ("Graphics", "MPSCompute"):
        entries += _process_list(handle, kind) or []
    return credible_processes(((entry.pid, entry.usedGpuMemory) for entry in entries), limit)


def _process_list(handle: Any, kind: str) -> list[Any] | None:
    """One of the driver's lists, with the newest call it has. A list that outgrows its buffer is asked for again."""
    for version in ("_v3", "_v2"):
        call = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses{version}", None)
        for _ in range(3 if call else 0):
            try:
                return list(call(handle))  # type: ignore[misc]
            except pynvml.NVMLError as error:
                if error.value == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    break  # an older driver: try the older call
                if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                    return None
    return None


def credible_processes(entries: Iterable[tuple[int, int | None]], limit: int) -> tuple[DeviceProcess, ...]:
    """Keep pids that this kernel can give out, each once, in order. `entries`: pid and bytes.

    A driver whose process structure differs from ours yields pids like 0 and 4294967295, and sizes to match.
    """
    found: dict[int, int | None] = {}
    for pid, used in entries:
        if not 1 <= pid <= limit:
            continue
        mib = None if used is None or not 0 <= used < 1 << 50 else -(-used // MIB)
        # The same process in two lists (compute and graphics) holds its memory once.
        found[pid] = max(mib or 0, found.get(pid) or 0) if mib is not None or found.get(pid) is not None else None
    return tuple(DeviceProcess(pid, found[pid]) for pid in sorted(found))


def pid_max() -> int:
    """The largest pid of this kernel."""
    try:
        with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1 << 22


def _optional(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The value, or None where this driver, card or account does not give it."""
    try:
        return call(*args, **kwargs)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, AttributeError, UnicodeDecodeError):
        return None


def _words(error: Exception) -> str:
    code = getattr(error, "value", None)
    return f"{error} (NVML error {code})" if code is not None else str(error)


def _init_fault(error: Any) -> str:
    known = _INIT_FAULTS.get(error.value)
    return known or f"NVML does not start: {_words(error)}. Look into `nvidia-smi` and `dmesg`; it is tried again."


def _device_fault(what: str, error: Exception) -> str:
    known = _DEVICE_FAULTS.get(getattr(error, "value", -1))
    return known or f"{what}: {_words(error)}"


def _mapped_library() -> tuple[str, int, int] | None:
    """Path, device and inode of the libnvidia-ml that this process has mapped; None if it cannot be told."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            paths = [line.split(maxsplit=5)[5].rstrip("\n") for line in file if "libnvidia-ml" in line]
        status = os.stat(paths[0])
    except (OSError, IndexError):
        return None
    return paths[0], status.st_dev, status.st_ino
