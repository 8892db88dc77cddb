"""Which devices a job may not take now, because an administrator has reserved them.

A device that is reserved *now* is open to the jobs of the reservation (those submitted with --reservation NAME by
its users and accounts) and closed to all others. Before a reservation begins, a job may start on its devices

1. if it is expected to be over by then: by its --expect, its time limit or a prediction; for a job that may not be
   requeued only its time limit counts, because at the beginning it would be ended for good;
2. else, if nobody knows how long it runs: if it may be requeued and still has the policy's `min_run` seconds. It is
   asked to save and leave at the beginning, and goes on elsewhere or later: an idle device would help nobody;
3. likewise if it is too long for every gap between the windows of repeating reservations: it would wait for ever.

Nothing is reserved on most machines: then this costs one look at an empty table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gpusched.model.clock import Instant
from gpusched.model.job import Job, Request
from gpusched.model.reservation import Reservation, sharing, widest_gap
from gpusched.model.rules import Rules
from gpusched.model.state import StopKind
from gpusched.policy.coming_back import comes_back
from gpusched.policy.expected import Knows, remaining, running_for

_NONE: frozenset[str] = frozenset()


class Sees(Knows, Protocol):
    """What is needed of the view."""

    rules: Rules
    reservations: dict[str, Reservation]  # by name: those that are active or to come

    def kind(self, request: Request) -> frozenset[str]:
        """The devices of the asked kind, or the places of CPU-only jobs."""


def closed(view: Sees, job: Job, now: Instant) -> frozenset[str]:
    """UUIDs of the devices that `job` may not be started on at this moment."""
    if not view.reservations:
        return _NONE
    found: set[str] = set()
    for reservation in view.reservations.values():
        if not entitled(reservation, job) and not may_precede(view, job, reservation, now):
            found.update(reservation.devices)
    return frozenset(found)


def taken(view: Sees, request: Request) -> frozenset[str]:
    """UUIDs of the devices that are reserved for others now."""
    if not view.reservations:
        return _NONE
    others = (r.devices for r in view.reservations.values() if r.begun and r.name != request.reservation)
    return frozenset().union(*others)


def competes_for(view: Sees, request: Request) -> frozenset[str]:
    """What a request competes for now: the devices of its kind, without those that are reserved for others."""
    kind = view.kind(request)
    if not view.reservations:
        return kind
    others = taken(view, request)
    return kind if kind.isdisjoint(others) else kind - others


def openings(view: Sees, job: Job, now: Instant) -> list[float]:
    """When (boot clock) reservations end that keep the job from devices, the first first."""
    found = {
        now.boot + r.end - now.wall
        for r in view.reservations.values()
        if r.end > now.wall and not entitled(r, job) and not may_precede(view, job, r, now)
    }
    return sorted(found)


def vacated(view: Sees, job: Job, now: Instant, until: float) -> frozenset[str]:
    """UUIDs of the devices that the job would have to leave before `until` (boot clock), for a reservation."""
    if not view.reservations:
        return _NONE
    wall = now.wall + until - now.boot
    begin = (r.devices for r in view.reservations.values() if r.start < wall and not entitled(r, job))
    return frozenset().union(*begin)


def entitled(reservation: Reservation, job: Job) -> bool:
    """The job was submitted to this reservation, by one of those it is for."""
    return job.spec.request.reservation == reservation.name and reservation.allows(job.owner.user, job.account)


def may_precede(view: Sees, job: Job, reservation: Reservation, now: Instant) -> bool:
    """Whether a job of others may be started on the reservation's devices now, before it begins."""
    if reservation.begun:
        return now.wall >= reservation.end
    left = reservation.start - now.wall
    if left <= 0:
        return now.wall >= reservation.end
    if not comes_back(job):
        return job.spec.time_limit is not None and job.spec.time_limit <= left
    needs = remaining(view, job, now)
    if needs is not None and needs <= left:
        return True
    if left < view.rules.policy.min_run:
        return False
    return needs is None or _never_fits(view.reservations, reservation, needs)


def over_by(view: Sees, job: Job, wall: float, now: Instant) -> bool:
    """Whether a running job is expected to be gone at this moment (wall clock). Of one that would be ended for good
    only its time limit counts, as in `may_precede`."""
    left = wall - now.wall
    if job.stop is not None and job.stop.kind is not StopKind.RESIZE:
        return job.stop.deadline - now.boot <= left
    if not comes_back(job):
        limit = job.spec.time_limit
        return limit is not None and limit - running_for(view, job, now) <= left
    needs = remaining(view, job, now)
    return needs is not None and needs <= left


def _never_fits(reservations: Mapping[str, Reservation], reservation: Reservation, needs: float) -> bool:
    if reservation.repeat is None:
        return False
    return needs > widest_gap(sharing(reservation, reservations.values()))
