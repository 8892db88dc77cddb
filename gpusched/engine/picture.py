"""A picture of a running engine, and a second engine made from it that may go its own way.

Taking the picture copies references only: jobs, attempts and devices are immutable, so it takes microseconds and the
engine goes on at once. What is made of it, elsewhere and later, cannot touch the first engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.engine.engine import Engine
from gpusched.model.changes import Snapshot
from gpusched.model.clock import Instant
from gpusched.model.device import Device
from gpusched.model.job import AttemptKey
from gpusched.model.past import Past
from gpusched.model.rules import Rules
from gpusched.policy.predict import Durations


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that decisions depend on, as it was at one moment. durations: shared with the engine, to be read."""

    now: Instant
    rules: Rules
    boot_id: str
    snapshot: Snapshot
    devices: tuple[Device, ...]
    overdue: frozenset[AttemptKey]
    closing: bool
    look_at: float | None  # boot clock: when the policy wants to decide again
    durations: Durations


def take(engine: Engine, now: Instant) -> Picture:
    """The engine as it is, for `revive`."""
    state, view = engine.state, engine.view
    view.durations.take_in()  # here, not where it is read
    snapshot = Snapshot(
        jobs=tuple(view.jobs.values()),
        attempts=(*view.live.values(), *view.leaving.values()),
        next_job_id=state.next_job_id,
        usage=view.ledger.entries(),
        reservations=tuple(view.reservations.values()),
    )
    devices = tuple([slot.device for slot in view.slots.values()])
    return Picture(
        now, state.rules, state.boot_id, snapshot, devices, frozenset(view.overdue), view.closing, state.look_at,
        view.durations,
    )


def revive(picture: Picture) -> Engine:
    """An engine in the same state. It learns nothing of what it lives through."""
    engine = Engine(picture.rules, picture.boot_id, story=False)
    engine.view.durations = Remembered(picture.durations)
    for device in picture.devices:
        engine.view.put_device(device)
    engine.restore(picture.snapshot, picture.now)
    engine.view.overdue |= picture.overdue
    engine.view.closing = picture.closing
    engine.state.look_at = picture.look_at
    return engine


class Remembered(Durations):
    """What somebody else has learned, for reading. Ends that were only imagined teach nothing."""

    def __init__(self, durations: Durations) -> None:
        super().__init__()
        self._version = durations._version
        self._classes = durations._classes

    def learn(self, past: Past) -> None:
        """Nothing."""
