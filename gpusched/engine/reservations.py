"""Reservations: made and taken back by administrators, begun and ended by the clock.

At the beginning of a window whoever holds a device of it and is not entitled is asked to save and leave, and goes on
elsewhere or later. At the end the devices are everybody's again, and the reservation's jobs, running or waiting, are
ordinary jobs. A reservation that repeats is armed again instead: its waiting jobs wait for the next window.
"""

from __future__ import annotations

import re

from gpusched.engine.attempts import ask_to_stop, grace
from gpusched.engine.turn import Turn
from gpusched.model.changes import Answer
from gpusched.model.errors import NotAllowed, NotFound, Refused, UsageError, known
from gpusched.model.events import ReservationRequested, UnreserveRequested
from gpusched.model.evolve import evolve
from gpusched.model.job import Caller, Job, JobSpec
from gpusched.model.reservation import DAY, Reservation
from gpusched.model.state import JobState, Stop, StopKind
from gpusched.model.units import format_duration
from gpusched.policy.coming_back import comes_back
from gpusched.policy.reserve import entitled, over_by
from gpusched.policy.reserve_devices import chosen, clashing, described, named
from gpusched.policy.view import View

JUST_NOW = 60.0  # seconds: a start that lies so little in the past means now
LONGEST_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_SEE = "see: gpusched admin reservations"

# ---- requests ---------------------------------------------------------------------------------------------------


def on_reserve(turn: Turn, event: ReservationRequested) -> tuple[Answer, ...]:
    """Make a reservation. Raises NotAllowed, UsageError and Refused; then nothing has changed."""
    _only_administrators(event.caller)
    _check(event)
    if event.name in turn.view.reservations:
        raise Refused(
            f"there is a reservation {event.name!r} already ({turn.view.reservations[event.name].when()})",
            f"choose another name, or take that one back first: gpusched admin unreserve {event.name}",
        )
    if event.start < turn.now.wall - JUST_NOW:
        raise UsageError("the reservation would begin in the past", "give a --start that is to come, or: --start now")
    start = max(event.start, turn.now.wall)
    draft = Reservation(
        event.name, (), start, start + event.duration, event.duration, event.users, event.accounts, event.repeat,
        event.zone, event.comment, event.caller.user, turn.now.wall,
    )
    if event.devices:
        slots = named(turn.view, event.devices)
    else:
        slots = chosen(turn.view, draft, event.count, event.gpu_type, turn.now)
    reservation = evolve(draft, devices=tuple(slot.device.uuid for slot in slots))
    _refuse_clashes(turn.view, reservation)
    strangers = _strangers(turn, reservation)
    occupants = [job for job in strangers if not over_by(turn.view, job, reservation.start, turn.now)]
    turn.put_reservation(reservation)
    said = f"{described(slots)} reserved for {reservation.for_whom()}: {reservation.when()}"
    return (Answer(event.name, said + _said_of(occupants, now=start <= turn.now.wall)),)


def on_unreserve(turn: Turn, event: UnreserveRequested) -> tuple[Answer, ...]:
    """Take reservations back; one answer for each name. Raises NotAllowed."""
    _only_administrators(event.caller)
    answers = []
    for name in dict.fromkeys(event.names):
        reservation = turn.view.reservations.get(name)
        if reservation is None:
            answers.append(Answer(name, error=NotFound(f"there is no reservation {name!r}", _SEE)))
            continue
        count = _end(turn, reservation, f"was taken back by {event.caller.user}")
        jobs = f"; {count} job{'s' if count > 1 else ''} of it {'are' if count > 1 else 'is'} ordinary now"
        answers.append(Answer(name, "taken back" + (jobs if count else "")))
    return tuple(answers)


def check_reservation(view: View, job: Job) -> None:
    """Refuse a job for a reservation that is not there, not for it, or too small. Raises UsageError, NotAllowed."""
    request, user, account = job.spec.request, job.owner.user, job.account
    if not request.reservation:
        return
    reservation = view.reservations.get(request.reservation)
    if reservation is None:
        raise known("reservation", request.reservation, tuple(view.reservations))
    if not reservation.allows(user, account):
        charged = f" (account {account})" if account != user else ""
        raise NotAllowed(
            f"reservation {reservation.name!r} is for {reservation.for_whom()}, not for {user}{charged}",
            "submit it without --reservation, or ask the administrator",
        )
    there = len(view.suitable(request))
    if there < request.gpus:
        raise UsageError(
            f"the job asks for {request.gpus} devices, reservation {reservation.name!r} has {there} such",
            f"ask for fewer, or submit it without --reservation; {_SEE}",
        )


def present_spec(view: View, job: Job) -> JobSpec:
    """What an ended job asked for, without a reservation that is over, or is not for it any more."""
    name = job.spec.request.reservation
    if not name or (name in view.reservations and entitled(view.reservations[name], job)):
        return job.spec
    return evolve(job.spec, request=evolve(job.spec.request, reservation=""))


def _only_administrators(caller: Caller) -> None:
    if not caller.admin:
        raise NotAllowed(
            "only an administrator may reserve devices or give them back", "ask root, or whoever runs the daemon"
        )


def _check(event: ReservationRequested) -> None:
    if not _NAME.fullmatch(event.name) or len(event.name) > LONGEST_NAME:
        raise UsageError(
            f"{event.name!r} cannot be a reservation's name",
            f"letters, digits, '_', '-' and '.', at most {LONGEST_NAME}, for example: paper-deadline",
        )
    if event.duration <= 0:
        raise UsageError("the duration of a reservation must be more than nothing", "for example --duration 8h")
    if event.repeat is not None and event.duration > event.repeat.days * DAY:
        raise UsageError(
            f"a {event.repeat} reservation of {format_duration(event.duration)} would overlap itself",
            f"give at most --duration {format_duration(event.repeat.days * DAY)}",
        )
    if bool(event.devices) == bool(event.count):
        raise UsageError("say which devices, or how many", "write either --devices 0,1 or --count 2")
    if event.count < 0:
        raise UsageError(f"--count {event.count} makes no sense", "ask for 1 or more")
    if event.devices and event.gpu_type:
        raise UsageError("--gpu-type chooses devices, and they are named already", "use it with --count")


def _refuse_clashes(view: View, reservation: Reservation) -> None:
    other = clashing(view, reservation)
    if other is not None:
        both = [view.slots[uuid] for uuid in reservation.devices if uuid in other.devices and uuid in view.slots]
        raise Refused(
            f"{described(both)} reserved at that time already: {other.name} for {other.for_whom()}, {other.when()}",
            f"choose other devices or another time; {_SEE}",
        )


# ---- the clock --------------------------------------------------------------------------------------------------


def on_time(turn: Turn) -> None:
    """Begin and end what the wall clock says. Cheap, and harmless to repeat: it is part of every step."""
    if not turn.view.reservations:
        return
    wall = turn.now.wall
    for reservation in tuple(turn.view.reservations.values()):
        if wall >= reservation.end:
            again = reservation.rearmed(wall)
            if again is None:
                _end(turn, reservation, "is over")
                continue
            turn.put_reservation(again)
            _look_again(turn, again)
    for reservation in tuple(turn.view.reservations.values()):
        if not reservation.begun and reservation.start <= wall:
            reservation = evolve(reservation, begun=True)
            turn.put_reservation(reservation)
            _look_again(turn, reservation)
        if reservation.begun:
            _clear(turn, reservation)


def _clear(turn: Turn, reservation: Reservation) -> None:
    """Ask whoever holds a device of it and is not entitled to save and leave. (What was promised to others there, the
    cycle withdraws.)"""
    for job in _strangers(turn, reservation):
        if job.state in (JobState.STARTING, JobState.RUNNING):
            deadline = turn.now.boot + grace(turn, job)
            ask_to_stop(turn, job, Stop(StopKind.RESERVATION, deadline, reservation=reservation.name))


def _strangers(turn: Turn, reservation: Reservation) -> list[Job]:
    """Jobs that hold devices of the reservation and are not entitled, by id."""
    slots = (turn.view.slots[uuid] for uuid in reservation.devices if uuid in turn.view.slots)
    ids = {key.job_id for slot in slots for key in slot.holders}
    found = (turn.state.jobs[job_id] for job_id in sorted(ids) if job_id in turn.view.live)
    return [job for job in found if not entitled(reservation, job)]


def _said_of(occupants: list[Job], now: bool) -> str:
    """Who is in the way, and what becomes of them. now: it begins at once."""
    if not occupants:
        return ""
    keys = ", ".join(job.key for job in occupants[:8]) + (", …" if len(occupants) > 8 else "")
    said = f"; job{'s' if len(occupants) > 1 else ''} {keys} run{'s' if len(occupants) == 1 else ''} there now"
    if now:
        said += f" and {'are' if len(occupants) > 1 else 'is'} asked to save and leave"
    else:
        said += ": whoever still does at the beginning is asked to save and leave"
    stuck = [job.key for job in occupants if not comes_back(job)]
    return said + (f" ({', '.join(stuck)} may not be requeued and would end there)" if stuck else "")


def _end(turn: Turn, reservation: Reservation, how: str) -> int:
    """It is over: its jobs are ordinary jobs from now on. Returns how many there were."""
    turn.put_reservation(evolve(reservation, ended_at=turn.now.wall))
    jobs = _of(turn, reservation)
    for job in jobs:
        spec = evolve(job.spec, request=evolve(job.spec.request, reservation=""))
        job = turn.put_job(job, spec=spec)
        turn.tell(job, "reservation", f"reservation {reservation.name} {how}: from now on it is an ordinary job")
    return len(jobs)


def _look_again(turn: Turn, reservation: Reservation) -> None:
    """Its waiting jobs may start, or may not any more: their eligibility is worked out anew."""
    for job in _of(turn, reservation):
        if job.state is JobState.PENDING:
            turn.put_job(job)


def _of(turn: Turn, reservation: Reservation) -> list[Job]:
    return [
        job for job in list(turn.state.jobs.values())
        if not job.state.final and job.spec.request.reservation == reservation.name
    ]
