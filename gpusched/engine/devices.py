"""What samples of the devices mean: placement facts, failures, and devices that an ended attempt has left."""

from __future__ import annotations

from dataclasses import replace

from gpusched.engine.attempts import clear_devices, fail_device
from gpusched.engine.turn import Turn
from gpusched.model.device import Device, Health, Occupancy
from gpusched.model.events import DevicesSampled
from gpusched.model.job import Attempt

OVERDUE = 30.0  # seconds after its end in which an attempt should have left its devices


def on_sampled(turn: Turn, event: DevicesSampled) -> None:
    if event.error is not None and not event.devices:
        for slot in list(turn.view.slots.values()):
            turn.put_device(replace(slot.device, stale=True))
        return
    for occupancy in event.devices:
        _take_in(turn, occupancy, stale=event.error is not None)
    if event.error is None:
        seen = {o.reading.uuid: o for o in event.devices}
        _miss(turn, seen)
        _leave(turn, seen)


def _miss(turn: Turn, seen: dict[str, Occupancy]) -> None:
    """A sample names every device: one that it does not name is gone."""
    for uuid, slot in list(turn.view.slots.items()):
        if uuid not in seen and slot.device.health is Health.OK:
            fault = "the driver no longer lists it"
            turn.put_device(replace(slot.device, health=Health.MISSING, fault=fault))
            fail_device(turn, uuid, fault)


def _take_in(turn: Turn, occupancy: Occupancy, stale: bool) -> None:
    reading = occupancy.reading
    slot = turn.view.slots.get(reading.uuid)
    before = slot.device if slot else None
    # memory that nothing explains counts against newcomers, unless our own holders may be the explanation
    unexplained = 0 if slot and slot.holders else occupancy.residual_mib
    device = Device(
        reading.uuid,
        reading.index,
        reading.name or (before.name if before else ""),
        reading.total_mib or (before.total_mib if before else 0),
        reading.health,
        reading.fault,
        occupancy.foreign_mib + unexplained,
        stale,
        before.drained if before else "",
        reading.group or (before.group if before else ""),
    )
    turn.put_device(device)
    if device.health is not Health.OK and (before is None or before.health is Health.OK):
        fail_device(turn, device.uuid, reading.fault or str(reading.health))


def _leave(turn: Turn, seen: dict[str, Occupancy]) -> None:
    known = turn.view.slots
    for attempt in list(turn.view.leaving.values()):
        # what the machine did not have any more when the daemon started holds nobody back
        gone = frozenset(u for u in attempt.uuids if (left(attempt, seen[u]) if u in seen else u not in known))
        if gone:
            clear_devices(turn, attempt, gone)
        if attempt.key in turn.view.leaving and turn.now.boot - (attempt.ended or 0.0) > OVERDUE:
            turn.overdue(attempt)


def left(attempt: Attempt, occupancy: Occupancy) -> bool:
    """The ended attempt is seen to have nothing on the device any more. A device that fails shows nothing: what was
    there may still be there when it answers again."""
    if occupancy.reading.health is not Health.OK:
        return False
    return attempt.key not in occupancy.own and occupancy.residual_mib == 0
