"""admin reserve, reservations, unreserve: devices that an administrator keeps for some."""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Iterable
from typing import Any

from gpusched.api.reservation import read_reservation
from gpusched.api.server import Call
from gpusched.daemon.service import Service, body_of
from gpusched.model.changes import Answer
from gpusched.model.errors import UsageError
from gpusched.model.events import UnreserveRequested
from gpusched.model.reservation import Reservation
from gpusched.policy.view import View

MOST_NAMES = 1000


async def reserve(service: Service, call: Call) -> dict[str, Any]:
    event = read_reservation(call.body, call.caller)
    unknown = await asyncio.to_thread(_unknown_users, event.users)  # a directory service may take its time
    if unknown:
        what = f"user{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
        raise UsageError(f"this machine knows no {what}", "write login names, as `id NAME` knows them")
    answers: tuple[Answer, ...] = await service.loop.ask(event)
    view = service.loop.engine.view
    made = view.reservations.get(event.name)  # none, if it has been taken back meanwhile
    return {"reservation": reservation_view(made, view) if made else None, "text": answers[0].done}


async def reservations(service: Service, call: Call) -> dict[str, Any]:
    """Those that are active or to come, by start; with all=1 also those that are over."""
    view = service.loop.engine.view
    found = sorted(view.reservations.values(), key=lambda r: (r.start, r.name))
    if call.query.get("all") in ("1", "true"):
        stored = await service.loop.read(service.loop.store.reservations)
        over = [r for r in stored if r.name not in view.reservations]
        found += sorted(over, key=lambda r: (-(r.ended_at or 0.0), r.name))
    return {"reservations": [reservation_view(r, view) for r in found]}


async def unreserve(service: Service, call: Call) -> dict[str, Any]:
    names = body_of(call, "names").get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError("no reservation is named", 'send {"names": ["paper"]}')
    if len(names) > MOST_NAMES:
        raise UsageError(f"{len(names)} reservations at once are too many", f"at most {MOST_NAMES}")
    answers: tuple[Answer, ...] = await service.loop.ask(UnreserveRequested(tuple(names), call.caller))
    return {"results": [_result(answer) for answer in answers]}


def _result(answer: Answer) -> dict[str, Any]:
    if answer.error is not None:
        return {"name": answer.key, "ok": False, "text": answer.error.message, **answer.error.to_json()}
    return {"name": answer.key, "ok": True, "text": answer.done}


def _unknown_users(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _is_user(name)]


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL character
        return False
    return True


def reservation_view(reservation: Reservation, view: View) -> dict[str, Any]:
    """RESERVATION of docs/api.md."""
    slots = [(uuid, view.slots.get(uuid)) for uuid in reservation.devices]
    trouble = []
    for uuid, slot in slots:
        if slot is None:
            trouble.append(f"device {uuid} is not there")
        elif not slot.device.usable:
            device = slot.device
            trouble.append(f"device {device.index}: {device.fault or device.drained or 'it does not answer'}")
    over = reservation.ended_at is not None
    jobs = [] if over else [
        job.key for job in view.jobs.values()
        if not job.state.final and job.spec.request.reservation == reservation.name
    ]
    return {
        "name": reservation.name,
        "devices": [{"index": slot.device.index if slot else None, "uuid": uuid} for uuid, slot in slots],
        "start_at": reservation.start,
        "end_at": reservation.end,
        "duration": reservation.duration,
        "when": reservation.when(),
        "state": "over" if over else "active" if reservation.begun else "to come",
        "users": list(reservation.users),
        "accounts": list(reservation.accounts),
        "repeat": str(reservation.repeat) if reservation.repeat else None,
        "zone": reservation.zone,
        "comment": reservation.comment,
        "by": reservation.by,
        "made_at": reservation.made_at,
        "ended_at": reservation.ended_at,
        "jobs": jobs,
        "trouble": [] if over else trouble,
    }
