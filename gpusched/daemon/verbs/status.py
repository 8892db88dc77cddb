"""status, and the daemon's half of doctor: is everything as it should be, and if not, what to do."""

from __future__ import annotations

import os
from typing import Any

from gpusched import __version__
from gpusched.api.server import API_VERSION, Call
from gpusched.daemon.service import Service, body_of
from gpusched.daemon.views import device_state
from gpusched.model.events import ServiceStopping
from gpusched.model.state import JobState

LOW_SPACE_MIB = 1024


async def status(service: Service, _call: Call) -> dict[str, Any]:
    engine = service.loop.engine
    view = engine.view
    jobs = engine.state.jobs.values()
    return {
        "version": __version__,
        "api": API_VERSION,
        "pid": os.getpid(),
        "started_at": service.started_at,
        "state_dir": str(service.places.state),
        "uid": service.uid,
        "user": service.user,
        "devices": {
            "total": len(view.slots),
            "free": sum(1 for slot in view.slots.values() if device_state(slot, view) == "free"),
            "error": service.board.error,
        },
        "jobs": {
            "pending": sum(job.size for job in jobs if job.state is JobState.PENDING),
            "running": sum(1 for job in jobs if job.state.live),
        },
        "degraded": service.loop.degraded,
        "probe": service.probe,
        "checks": _checks(service),
        "qos": sorted(service.config.rules.qos),
        "partitions": sorted(service.config.rules.partitions),
    }


def _checks(service: Service) -> list[dict[str, Any]]:
    board, degraded = service.board, service.loop.degraded
    disk = os.statvfs(service.places.state)
    free_mib = disk.f_bavail * disk.f_frsize // (1024 * 1024)
    slots = service.loop.engine.view.slots.values()
    bad = [slot.device for slot in slots if not slot.device.usable]
    return [
        _check("database", degraded is None, degraded or "takes writes", "free some disk space, or move the state"),
        _check(
            "devices",
            board.error is None and bool(slots),
            board.error or (f"{len(slots)} found ({service.probe})" if slots else "none found"),
            "without a GPU: gpusched demo, or simulated devices with gpusched daemon run --devices sim:4x24G",
        ),
        *(
            _check(f"device {device.index}", False, device.fault or device.drained or "does not answer",
                   "no job is started there")
            for device in bad
        ),
        _check("disk", free_mib > LOW_SPACE_MIB, f"{free_mib} MiB free at {service.places.state}", "free some space"),
    ]


def _check(name: str, ok: bool, text: str, hint: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "text": text, "hint": "" if ok else hint}


async def stop(service: Service, call: Call) -> dict[str, Any]:
    """End the daemon. Jobs live on, unless they are asked to save and go back to the queue first."""
    ask_jobs = bool(body_of(call, "ask_jobs").get("ask_jobs", False))
    if ask_jobs:  # without it there is nothing to record, and it must work with a database that does not
        await service.loop.ask(ServiceStopping(call.caller, ask_jobs))
    service.stop()
    running = len(service.loop.engine.view.live)
    if not running:
        return {"text": "the daemon ends; no job is running"}
    left = "asked to save and leave" if ask_jobs else "left running; the next daemon takes them over"
    return {"text": f"the daemon ends; {running} running job{'s' if running > 1 else ''} {left}"}
