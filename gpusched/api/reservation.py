"""The body of a reservation: every field checked before the engine sees it. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gpusched.api.submission import Comment, Name, Wall, read
from gpusched.model.errors import known
from gpusched.model.events import ReservationRequested
from gpusched.model.job import Caller
from gpusched.model.reservation import Repeat

Names = Annotated[list[Name], Field(max_length=1000)]


class ReservationBody(BaseModel):
    """See docs/api.md. Times in seconds since the epoch, durations in seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    start: Wall
    duration: Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
    devices: Names = []
    count: Annotated[int, Field(ge=0, le=100_000)] = 0
    gpu_type: Name | None = None
    users: Names = []
    accounts: Names = []
    repeat: Name | None = None
    zone: Annotated[str, Field(max_length=128)] = ""
    comment: Comment = ""


def read_reservation(body: Any, caller: Caller) -> ReservationRequested:
    """The request of this body. Raises UsageError that names the field and what is wrong with it."""
    asked = read(ReservationBody, body, "gpusched admin reserve --help")
    if asked.repeat is not None and asked.repeat not in list(Repeat):
        raise known("repetition", asked.repeat, [str(repeat) for repeat in Repeat])
    return ReservationRequested(
        asked.name, caller, asked.start, asked.duration, _once(asked.devices), asked.count, asked.gpu_type,
        _once(asked.users), _once(asked.accounts), Repeat(asked.repeat) if asked.repeat else None, asked.zone,
        asked.comment,
    )


def _once(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
