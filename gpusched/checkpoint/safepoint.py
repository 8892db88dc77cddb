"""Safe points: the places where a run may be saved or stopped, and what is decided at each.

A wish to save or to stop comes from the scheduler (mailbox), from a SIGTERM, from the interval, or because a time limit
is near. Several ranks agree on it first, so that all of them act at the same safe point. Where a safe point cannot be
saved at (inside an unfinished step) the wish is kept for the next one. Must not save or leave itself: run.py does.
"""

from dataclasses import dataclass
from typing import Any, Optional

from gpusched.checkpoint import leave
from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.mailbox import Mailbox, Request
from gpusched.checkpoint.timelimit import TimeLimit

NOTHING, SAVE, STOP = 0, 1, 2


@dataclass(frozen=True)
class Decision:
    """What to do at this safe point. `request` is what somebody asked for; None for a periodic save."""

    stop: bool
    request: Optional[Request]


@dataclass
class Count:
    """Safe points passed so far."""

    passed: int = 0


OF_THIS_PROCESS = Count()  # one request speaks to a process, which may have several runs, one after the other


class SafePoints:
    """Counts safe points, and decides at each."""

    def __init__(
        self,
        mail: Mailbox,
        termination: leave.Termination,
        interval: Interval,
        ranks: Any,
        count: Count = OF_THIS_PROCESS,
        limit: Optional[TimeLimit] = None,
    ) -> None:
        self._limit = limit if ranks.rank == 0 else None
        self._mail, self._termination, self._interval, self._ranks = mail, termination, interval, ranks
        self._carried, self._count = NOTHING, count

    def expected(self) -> Optional[Request]:
        """What the next safe point will serve, without taking it."""
        return self._asked(self._count.passed + 1)

    def _asked(self, point: int) -> Optional[Request]:
        """Only the first rank listens to the scheduler; a signal counts wherever it came."""
        if self._termination.asked:
            return Request(True, "SIGTERM")
        request = self._mail.poll() if self._ranks.rank == 0 else None
        return request if request is not None and request.safe_point <= point else None

    def arrive(self, now: float, steps: int, kind: str, can_save: bool) -> Optional[Decision]:
        """One more safe point, of a kind: "step", "epoch" (where periodic saves happen), "micro_step" or "check"."""
        self._count.passed += 1
        request = self._asked(self._count.passed)
        by_steps = kind == "step" and self._interval.due_by_steps(steps)  # all ranks know: nothing to agree on
        if request is not None:
            wish = STOP if request.stop else SAVE
        else:
            near = self._limit is not None and self._limit.near(now)
            wish = SAVE if near or (kind in ("step", "epoch") and self._due(now)) else NOTHING
        if self._ranks.size > 1:
            wish = self._ranks.agree(wish, steps, kind)
        wish = max(wish, self._carried, SAVE if by_steps else NOTHING)
        if wish == NOTHING:
            return None
        if not can_save:
            self._carried = wish
            return None
        self._carried = NOTHING
        if request is None and wish == STOP:
            request = Request(True, "asked on another rank")
        elif request is not None and request.stop and wish == SAVE:
            request = None  # this save was agreed on before; the other ranks do not know of the stop yet
        return Decision(wish == STOP, request)

    def postpone(self) -> None:
        """The script wants to save where that is not possible: at the next safe point then."""
        self._carried = max(self._carried, SAVE)

    def _due(self, now: float) -> bool:
        """By time, when the first rank's clock says so."""
        return self._ranks.rank == 0 and self._interval.due_by_time(now)

    @property
    def waiting(self) -> bool:
        """A wish that could not be served yet."""
        return self._carried != NOTHING
