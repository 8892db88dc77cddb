"""Faults for simulated devices, read from a JSON file that can be rewritten while the daemon runs.

    {
      "devices": {
        "0": {"lost": true},                      the device has fallen off the bus (health failed)
        "1": {"missing": true},                   the driver no longer lists it (health missing)
        "2": {"foreign_mib": 4096},               somebody else's (fictitious) process holds 4096 MiB
        "3": {"residual_mib": 2048},              2048 MiB are in use and no process explains them
        "*": {"fail": ["temperature_c"]}          these readings fail; `*` means every device, a uuid works too
      },
      "error": "the driver is being replaced",    the whole probe fails with this sentence
      "hang_ms": 8000                             each answer takes so long (past its deadline: an error)
    }

`fail` takes utilization, temperature_c, power_w, power_limit_w and pci_bus_id (then unknown), processes (then the card
cannot list them), and uuid, name, total_mib and used_mib (without which a device is failed). Write the file by rename.
It is read again when its time or size changes; an absent or empty one means no faults; a bad one is told in the sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPTIONAL = ("utilization", "temperature_c", "power_w", "power_limit_w", "pci_bus_id")
ESSENTIAL = ("uuid", "name", "total_mib", "used_mib")
_FIELDS = (*OPTIONAL, *ESSENTIAL, "processes")
_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class DeviceFaults:
    """What is wrong with one device. Memory in MiB."""

    lost: bool = False
    missing: bool = False
    foreign_mib: int = 0
    residual_mib: int = 0
    fail: tuple[str, ...] = ()


NO_DEVICE_FAULTS = DeviceFaults()


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the machine."""

    devices: Mapping[str, DeviceFaults] = field(default_factory=dict)
    error: str | None = None
    hang_ms: int = 0

    def of(self, index: int, uuid: str) -> DeviceFaults:
        """The faults of a device: those named for it, else those for all."""
        for key in (str(index), uuid, "*"):
            if key in self.devices:
                return self.devices[key]
        return NO_DEVICE_FAULTS


def parse_faults(data: bytes) -> Faults:
    """Read the format above. Raises ValueError with a sentence."""
    if not data.strip():
        return Faults()
    body = _table("the file", json.loads(data), {"devices": dict, "error": str, "hang_ms": int})
    devices = {str(key): _device(str(key), value) for key, value in body.get("devices", {}).items()}
    return Faults(devices, body.get("error"), body.get("hang_ms", 0))


def _device(key: str, value: Any) -> DeviceFaults:
    kinds = {"lost": bool, "missing": bool, "foreign_mib": int, "residual_mib": int, "fail": list}
    body = _table(f"device {key!r}", value, kinds)
    fail = tuple(body.pop("fail", ()))
    for name in fail:
        if name not in _FIELDS:
            raise ValueError(f"device {key!r}: {name!r} is no reading; known: {', '.join(_FIELDS)}")
    return DeviceFaults(**body, fail=fail)


def _table(what: str, value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object in braces")
    for key, item in value.items():
        if key not in kinds:
            raise ValueError(f"{what}: {key!r} is unknown; known: {', '.join(kinds)}")
        if type(item) is not kinds[key]:
            raise ValueError(f"{what}: {key!r} must be of type {kinds[key].__name__}")
        if isinstance(item, int) and item < 0:
            raise ValueError(f"{what}: {key!r} must not be negative")
    return dict(value)


class FaultsFile:
    """The faults as the file says now. Reads it only when it has changed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._faults = Faults()
        self._error: str | None = None

    def current(self) -> tuple[Faults, str | None]:
        """The faults, and what is wrong with the file itself (then no faults are injected). Never raises."""
        if self._path is None:
            return self._faults, None
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._faults, self._error = Faults(), None
                self._seen = seen
                if status.st_size > _LARGEST:
                    raise ValueError("it is larger than 1 MiB")
                self._faults = parse_faults(self._path.read_bytes())
        except FileNotFoundError:
            self._faults, self._error, self._seen = Faults(), None, None
        except (OSError, ValueError, RecursionError) as error:
            self._error = f"The faults file {self._path} cannot be used: {error}. Correct or remove it."
        return self._faults, self._error
