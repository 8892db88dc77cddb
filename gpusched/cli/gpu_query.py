"""nvidia-smi's way of asking: field names, units and CSV as `nvidia-smi --query-gpu=… --format=csv` has them.

Scripts that read nvidia-smi can read this instead; `job.*` and `sched.*` are ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpusched.cli.output import Json, csv_cell
from gpusched.model.errors import UsageError, known

MISSING = "[N/A]"


@dataclass(frozen=True, slots=True)
class Fact:
    """One field: how to get it from (the whole answer, the device), its unit, and its number of decimals."""

    get: Callable[[Json, Json], Any]
    unit: str = ""
    decimals: int | None = None


def _own(key: str) -> Callable[[Json, Json], Any]:
    return lambda answer, device: device.get(key)


def _job(key: str) -> Callable[[Json, Json], Any]:
    return lambda answer, device: ";".join(str(job.get(key)) for job in device.get("jobs") or ()) or None


def _free(answer: Json, device: Json) -> int | None:
    total, used = device.get("memory_total"), device.get("memory_used")
    return None if total is None or used is None else max(0, total - used)


def _timestamp(answer: Json, device: Json) -> str:
    now = time.time()
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03}"


FACTS: dict[str, Fact] = {
    "timestamp": Fact(_timestamp),
    "driver_version": Fact(lambda answer, device: answer.get("driver") or None),
    "count": Fact(lambda answer, device: len(answer["devices"])),
    "index": Fact(_own("index")),
    "name": Fact(_own("name")),
    "gpu_name": Fact(_own("name")),
    "uuid": Fact(_own("uuid")),
    "gpu_uuid": Fact(_own("uuid")),
    "pci.bus_id": Fact(_own("pci_bus_id")),
    "gpu_bus_id": Fact(_own("pci_bus_id")),
    "memory.total": Fact(_own("memory_total"), "MiB"),
    "memory.used": Fact(_own("memory_used"), "MiB"),
    "memory.free": Fact(_free, "MiB"),
    "utilization.gpu": Fact(_own("utilization"), "%"),
    "temperature.gpu": Fact(_own("temperature")),
    "power.draw": Fact(_own("power"), "W", 2),
    "power.limit": Fact(_own("power_limit"), "W", 2),
    "job.id": Fact(_job("job")),
    "job.user": Fact(_job("user")),
    "job.name": Fact(_job("name")),
    "sched.state": Fact(_own("state")),
    "sched.foreign_mib": Fact(_own("foreign_mib")),
}


@dataclass(frozen=True, slots=True)
class Query:
    fields: tuple[str, ...]
    json: bool = False
    header: bool = True
    units: bool = True


def parse_query(fields: str, form: str | None) -> Query:
    """Read --query and --format. Raises UsageError that lists the known fields."""
    names = tuple(name.strip() for name in fields.split(","))
    for name in names:
        if name not in FACTS:
            raise known("field", name, list(FACTS))
    first, *rest = [word.strip() for word in (form or "csv").split(",")]
    if first not in ("csv", "json") or set(rest) - {"noheader", "nounits"}:
        raise UsageError(f"--format {form} cannot be read", "write: --format csv[,noheader][,nounits], or json")
    return Query(names, first == "json", "noheader" not in rest, "nounits" not in rest)


def print_query(answer: Json, query: Query) -> None:
    """Print one line (or object) per device."""
    from gpusched.cli.settings import settings

    devices = answer["devices"]
    if query.json or settings.json:
        rows = [{name: FACTS[name].get(answer, device) for name in query.fields} for device in devices]
        print(json.dumps({"devices": rows} if settings.json and not query.json else rows))
        return
    if query.header:
        print(", ".join(f"{name} [{FACTS[name].unit}]" if FACTS[name].unit else name for name in query.fields))
    for device in devices:
        print(", ".join(_cell(FACTS[name], FACTS[name].get(answer, device), query.units) for name in query.fields))


def _cell(fact: Fact, value: Any, units: bool) -> str:
    if value is None:
        return MISSING
    if fact.decimals is not None:
        shown = f"{value:.{fact.decimals}f}"
    else:
        shown = csv_cell(value)
        if any(char in shown for char in ',"'):
            shown = '"' + shown.replace('"', '""') + '"'
    return f"{shown} {fact.unit}" if units and fact.unit else shown
