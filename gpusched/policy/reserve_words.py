"""What reservations have to do with a job's waiting, in sentences: each a pair of the reason and what must happen."""

from __future__ import annotations

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.reservation import Reservation
from gpusched.model.units import format_duration
from gpusched.policy.coming_back import comes_back
from gpusched.policy.reserve import entitled, may_precede
from gpusched.policy.view import View

_WORTH_A_HINT = 60.0  # seconds: nobody shortens a job to less


def before_window(view: View, job: Job, now: Instant) -> tuple[str, str] | None:
    """Of a job that was submitted to a reservation which has not begun."""
    reservation = view.reservations.get(job.spec.request.reservation)
    if reservation is None or reservation.active(now.wall):
        return None
    return f"its reservation {reservation.name} is from {reservation.when()}", "the reservation begins"


def kept_from(view: View, job: Job, now: Instant) -> tuple[str, str]:
    """Of a job that reservations keep from devices it could use."""
    kind = view.kind(job.spec.request)
    found = [r for r in _shutting(view, job, now) if not kind.isdisjoint(r.devices)]
    found.sort(key=lambda r: (r.start, r.name))
    text = "; ".join(f"{_devices(view, r, kind)} {_for_whom(r)}" for r in found)
    left = min((r.start - now.wall for r in found if not r.begun), default=0.0)
    if left < _WORTH_A_HINT:
        return text, f"reservation {found[0].name} ends" if found else "the reservation ends"
    shorter = f"gpusched update {job.key} --time {format_duration(left)}"
    if not comes_back(job) and job.spec.time_limit is None:
        return text, f"the reservation ends, or the job, which may not be requeued, gets a time limit: {shorter}"
    return text, f"the reservation ends, or the job needs less time: {shorter}"


def of_device(view: View, job: Job, uuid: str, now: Instant) -> str:
    """Why a device is not the job's to start on now; empty: no reservation is the reason."""
    return next((f"reserved {_for_whom(r)}" for r in _shutting(view, job, now) if uuid in r.devices), "")


def _shutting(view: View, job: Job, now: Instant) -> list[Reservation]:
    return [r for r in view.reservations.values() if not entitled(r, job) and not may_precede(view, job, r, now)]


def _for_whom(reservation: Reservation) -> str:
    return f"for {reservation.for_whom()} from {reservation.when()} (reservation {reservation.name})"


def _devices(view: View, reservation: Reservation, kind: frozenset[str]) -> str:
    slots = (view.slots[uuid] for uuid in reservation.devices if uuid in kind and uuid in view.slots)
    indexes = sorted(slot.device.index for slot in slots)
    many = len(indexes) > 1
    return f"device{'s' if many else ''} {','.join(map(str, indexes))} {'are' if many else 'is'} reserved"
