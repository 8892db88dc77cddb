"""Placement: which devices an attempt would get now, all of them or none (gang)."""

from __future__ import annotations

from collections.abc import Container, Sequence

from gpusched.model.job import Job, Request, Share
from gpusched.model.policy import Placement
from gpusched.policy.holdings import Slot
from gpusched.policy.pool import Member, Pool
from gpusched.policy.view import View


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


def possible(view: View, request: Request, closed: Container[str] = frozenset()) -> bool:
    """The request could be met on the devices as they are today, if all our own jobs left them.

    closed: devices that count as not there.
    """
    pool = view.pool(request)
    if not closed and not request.shared:
        return pool.could_hold(request.gpus)
    packs = view.rules.policy.placement is Placement.PACK and not request.shared
    if not closed and pool.open >= request.gpus:
        return True
    floor = view.rules.foreign_floor_mib
    able = {
        s.device.uuid for s in view.suitable(request)
        if s.device.usable and s.device.uuid not in closed and not foreign_blocks(s, request, floor)
    }  # fmt: skip
    if len(able) < request.gpus:
        return False
    return not packs or pool.has_place(request.gpus, pool.able_in_groups(able.__contains__))


def fit(
    view: View, job: Job, closed: Container[str] = frozenset(), count: int | None = None
) -> tuple[Share, ...] | None:
    """The shares that `job` would get now, or None. CPU-only jobs get an empty tuple.

    closed: devices that this job may not use, besides those that are kept or guarded for others.
    count: how many devices; None: as many as it asks for, of an elastic job the least.
    Exclusive jobs take the smallest devices that suffice, so that the big ones stay free for those who need them,
    packed into groups as the policy's placement says; sharing jobs go where the least memory would be left over.
    The index settles every tie.
    """
    request = job.spec.request
    if request.gpus == 0:
        return () if view.cpu_running < view.rules.cpu_jobs else None
    if request.shared:
        return _fit_shared(view, job, closed)
    pool, number = view.pool(request), request.gpus if count is None else count
    if pool.open < number:
        return None
    uuids = pool.pick(number) if pool.uniform and not closed else _pick_smallest(view, request, closed, number)
    return None if uuids is None else tuple([view.slots[uuid].whole for uuid in uuids])


def promised(view: View, job: Job) -> tuple[Share, ...] | None:
    """The shares of exactly the devices that were promised to the job, if all of them have room now."""
    request, floor = job.spec.request, view.rules.foreign_floor_mib
    for uuid in job.earmark:
        slot = view.slots.get(uuid)
        if slot is None or slot.kept_for != job.id or not room_for(slot, request, floor):
            return None
    share = request.gpu_mem_mib if request.shared else None
    return tuple(Share(uuid, share) for uuid in job.earmark)


def _fit_shared(view: View, job: Job, closed: Container[str]) -> tuple[Share, ...] | None:
    request, floor = job.spec.request, view.rules.foreign_floor_mib
    slots = [
        slot
        for slot in view.suitable(request)
        if slot.kept_for in (None, job.id)
        and not slot.guarded
        and slot.device.uuid not in closed
        and room_for(slot, request, floor)
    ]
    if len(slots) < request.gpus:
        return None
    slots.sort(key=lambda s: s.device.total_mib - s.device.foreign_mib - s.shared_mib)  # stable: then by index
    return tuple(Share(slot.device.uuid, request.gpu_mem_mib) for slot in slots[: request.gpus])


def _pick_smallest(view: View, request: Request, closed: Container[str], count: int) -> list[str] | None:
    """Among the open devices that are not closed: of the smallest size with which the gang finds a place."""
    pool = view.pool(request)
    opened = pool.open_uuids()
    able = [view.slots[uuid] for uuid in opened if uuid not in closed]
    if len(able) < count:
        return None
    packed = view.rules.policy.placement is Placement.PACK
    if packed and pool.uniform:
        with pool.without([uuid for uuid in opened if uuid in closed]):
            return pool.pick(count)
    slots = view.suitable(request) if packed else able
    for size in sorted({slot.device.total_mib for slot in able}):
        fitting = {slot.device.uuid for slot in able if slot.device.total_mib <= size}
        uuids = _pool_of(view, slots, fitting).pick(count)
        if uuids is not None:
            return uuids
    return None


def _pool_of(view: View, slots: Sequence[Slot], able: set[str]) -> Pool:
    """A pool of `able`, all of them open. Where gangs are packed, the others count for how large the groups are."""
    placement = view.rules.policy.placement
    of = slots if placement is Placement.PACK else [slot for slot in slots if slot.device.uuid in able]
    pool = Pool([Member(slot.device.uuid, slot.device.group, slot.device.total_mib) for slot in of], placement)
    for uuid in able:
        pool.flip(uuid, True)
    return pool
