"""What an ended job teaches about those to come: who ran what on how many devices, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Past:
    """One job that did its work to the end."""

    user: str
    account: str
    name: str
    gpus: int
    ran: float  # seconds of running in all, over all of its attempts
