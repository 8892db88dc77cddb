"""gpus: every device with who uses it."""

from __future__ import annotations

from typing import Any

import psutil

from gpusched.api.server import Call
from gpusched.daemon.service import Service
from gpusched.daemon.views import device_view
from gpusched.model.errors import UsageError


async def devices(service: Service, call: Call) -> dict[str, Any]:
    text = call.query.get("samples", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UsageError(f"samples={text!r} is not a number")
    board, view = service.board, service.loop.engine.view
    occupancy = {o.reading.uuid: o for o in board.occupancy}
    users = {pid: _user(pid) for o in board.occupancy for pid in o.foreign_pids}
    shown = []
    for slot in sorted(view.slots.values(), key=lambda s: (s.device.index, s.device.uuid)):
        uuid = slot.device.uuid
        samples = list(board.history.get(uuid, ()))[-int(text) :] if int(text) else []
        shown.append(device_view(slot, occupancy.get(uuid), view, samples, users))
    return {"devices": shown, "error": board.error, "driver": board.driver}


def _user(pid: int) -> str:
    try:
        return str(psutil.Process(pid).username())
    except psutil.Error:
        return "?"
