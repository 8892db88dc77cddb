"""A device reading as one JSON object, for the pipe between the daemon and its NVML worker. No NVML, no processes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpusched.model.device import DeviceProcess, DeviceReading, Health


def encode(reading: DeviceReading) -> dict[str, Any]:
    """The reading as plain values."""
    body = asdict(reading)
    body["processes"] = [[process.pid, process.used_mib] for process in reading.processes]
    return body


def decode(body: dict[str, Any]) -> DeviceReading:
    """What `encode` made. Raises KeyError, TypeError or ValueError if it is anything else."""
    values = dict(body)
    values["processes"] = tuple(DeviceProcess(int(pid), used) for pid, used in values["processes"])
    values["health"] = Health(values["health"])
    return DeviceReading(**values)
