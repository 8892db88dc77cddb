"""Reservations in a small world (tests/builders.py), in a line each."""

from __future__ import annotations

from typing import Any

from builders import PEOPLE, World

from gpusched.model.errors import GpuschedError
from gpusched.model.events import ReservationRequested, UnreserveRequested
from gpusched.model.reservation import Repeat, Reservation

HOUR = 3600.0


def reserve(
    world: World, name: str = "paper", *, devices: str = "", count: int = 0, start_in: float = 0.0,
    duration: float = HOUR, users: str = "ann", accounts: str = "", repeat: Repeat | None = None, by: str = "root",
    **fields: Any,
) -> str:  # fmt: skip
    """Make a reservation that begins in `start_in` seconds. Returns the answer; raises the refusal."""
    event = ReservationRequested(
        name, PEOPLE[by], world.now.wall + start_in, duration, _split(devices), count, users=_split(users),
        accounts=_split(accounts), repeat=repeat, **fields,
    )
    return _only(world.handle(event))


def unreserve(world: World, name: str = "paper", by: str = "root") -> str:
    """Take it back. Returns the answer; raises the refusal."""
    return _only(world.handle(UnreserveRequested((name,), PEOPLE[by])))


def reserved(world: World, name: str = "paper") -> tuple[int, ...]:
    """Indexes of the devices of a reservation that is not over."""
    return tuple(int(uuid.removeprefix("GPU-")) for uuid in the(world, name).devices)


def the(world: World, name: str = "paper") -> Reservation:
    return world.engine.view.reservations[name]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _only(replies: tuple[Any, ...]) -> str:
    (reply,) = replies
    if isinstance(reply, GpuschedError):
        raise reply
    (answer,) = reply
    if answer.error is not None:
        raise answer.error
    return str(answer.done)
