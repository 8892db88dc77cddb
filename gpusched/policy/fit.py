"""Placement: which devices an attempt would get now, all of them or none (gang)."""

from __future__ import annotations

from collections.abc import Container

from gpusched.model.job import Job, Request, Share
from gpusched.policy.view import Slot, View


def room_for(slot: Slot, request: Request, floor_mib: int) -> bool:
    """The device could take one more attempt with this request now, as far as its holders and foreign use go."""
    device = slot.device
    if not device.usable:
        return False
    if request.shared:
        if slot.exclusive:
            return False
        return slot.shared_mib + device.foreign_mib + (request.gpu_mem_mib or 0) <= device.total_mib
    return not slot.holders and device.foreign_mib <= floor_mib


def foreign_blocks(slot: Slot, request: Request, floor_mib: int) -> bool:
    """Foreign use alone keeps this request from the device, even if all our own jobs left it."""
    device = slot.device
    if request.shared:
        return device.foreign_mib + (request.gpu_mem_mib or 0) > device.total_mib
    return device.foreign_mib > floor_mib


def possible(view: View, request: Request) -> bool:
    """The request could be met on the devices as they are today, if all our own jobs left them."""
    floor = view.rules.foreign_floor_mib
    able = [s for s in view.suitable(request) if s.device.usable and not foreign_blocks(s, request, floor)]
    return len(able) >= request.gpus


def fit(view: View, job: Job, guarded: Container[str] = ()) -> tuple[Share, ...] | None:
    """The shares that `job` would get now, or None. CPU-only jobs get an empty tuple.

    guarded: devices that are being kept for jobs ahead of this one.
    Exclusive jobs take the smallest devices that suffice, so that the big ones stay free for those who need them;
    sharing jobs go where the least memory would be left over. The index settles every tie.
    """
    request = job.spec.request
    if request.gpus == 0:
        return () if view.cpu_running < view.rules.cpu_jobs else None
    floor = view.rules.foreign_floor_mib
    open_slots = [
        slot
        for slot in view.suitable(request)
        if slot.kept_for in (None, job.id) and slot.device.uuid not in guarded and room_for(slot, request, floor)
    ]
    if len(open_slots) < request.gpus:
        return None
    open_slots.sort(key=lambda slot: (_left_over(slot, request), slot.device.index, slot.device.uuid))
    share = request.gpu_mem_mib if request.shared else None
    return tuple(Share(slot.device.uuid, share) for slot in open_slots[: request.gpus])


def _left_over(slot: Slot, request: Request) -> int:
    if request.shared:
        return slot.device.total_mib - slot.device.foreign_mib - slot.shared_mib
    return slot.device.total_mib
