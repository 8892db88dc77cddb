"""Clocks: with which seed, and with which batch, the next pass over the data begins. Must not import torch."""

from typing import Protocol, Tuple

from gpusched.checkpoint.state.randomness import mix


class Clock(Protocol):
    """Says, when a pass over the data begins, with which seed and with which batch."""

    def begin(self) -> Tuple[int, int]: ...


class Aim:
    """The clock of somebody who knows: each pass is aimed beforehand."""

    def __init__(self) -> None:
        self.seed = self.start = 0

    def begin(self) -> Tuple[int, int]:
        return self.seed, self.start


class Timetable:
    """The clock of loops that we do not see: each pass is the next epoch, unless set_epoch() says which."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch, self.start = seed, 0, 0
        self.begun = False  # a pass over this epoch has begun
        self.touched = False  # and a batch of it was handed out

    def due(self) -> Tuple[int, int]:
        """Epoch and first batch of the next pass."""
        return (self.epoch + 1, 0) if self.begun else (self.epoch, self.start)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is over this epoch. Said of the epoch that is due already, it keeps the place in it."""
        if epoch != self.epoch or self.touched:
            self.start = 0
        self.epoch, self.begun, self.touched = epoch, False, False

    def touch(self, epoch: int) -> None:
        """A batch of this epoch was handed out: its place is no longer due."""
        self.epoch, self.begun, self.touched = epoch, True, True

    def begin(self) -> Tuple[int, int]:
        self.epoch, self.start = self.due()
        self.begun, self.touched = True, False
        return mix(self.seed, "epoch", self.epoch), self.start
