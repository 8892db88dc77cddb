"""How long jobs run, learned from those that have ended; `policies` ask it for estimates and for ranks.

It must not know the view, jobs or the clock: it learns a `Past` at a time and answers from nothing else.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

from gpusched.model.past import Past

KEPT = 500  # the latest jobs of a class that it remembers
CLASSES = 20_000  # classes; past that the ones that have not grown for longest are forgotten
ENOUGH = 3  # jobs that must have run longer than this one has already


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds that a job still has to run: `mean`, and what 20 %, 50 % and 90 % of the jobs like it stayed below."""

    mean: float
    low: float
    middle: float
    high: float
    samples: int
    basis: str  # in words: 12 jobs named train by ann on 4 devices


@dataclass(slots=True)
class _Class:
    latest: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, ran: float) -> None:
        if len(self.latest) >= KEPT:
            old = self.latest.popleft()
            del self.ordered[bisect_right(self.ordered, old) - 1]
        self.latest.append(ran)
        insort(self.ordered, ran)


class Durations:
    """What the jobs that have ended say about the others. `version` grows with everything learned."""

    def __init__(self) -> None:
        self.version = 0
        self._classes: dict[tuple[str | int, ...], _Class] = {}

    def learn(self, past: Past) -> None:
        self.version += 1
        for key in _keys(past.user, past.account, past.name, past.gpus):
            known = self._classes.pop(key, None) or _Class()
            known.add(past.ran)
            self._classes[key] = known
        while len(self._classes) > CLASSES:
            del self._classes[next(iter(self._classes))]

    def predict(self, user: str, account: str, name: str, gpus: int, ran_already: float) -> Prediction | None:
        """Seconds left for a job that has run so long already; None when there is too little to go by."""
        for key in _keys(user, account, name, gpus):
            known = self._classes.get(key)
            if known is None:
                continue
            above = bisect_right(known.ordered, ran_already)
            longer = known.ordered[above:]
            if len(longer) >= ENOUGH:
                left = [ran - ran_already for ran in longer]
                at = [left[min(len(left) - 1, int(share * len(left)))] for share in (0.2, 0.5, 0.9)]
                return Prediction(sum(left) / len(left), at[0], at[1], at[2], len(left), f"{len(left)} jobs like it")
        return None

    def rank(self, user: str, account: str, name: str, gpus: int, ran: float) -> float:
        """What to order by, smaller first."""
        found = self.predict(user, account, name, gpus, ran)
        return ran if found is None else found.mean


def _keys(user: str, account: str, name: str, gpus: int) -> tuple[tuple[str | int, ...], ...]:
    return (
        ("user name gpus", user, name, gpus),
        ("name gpus", name, gpus),
        ("user gpus", user, gpus),
        ("account gpus", account, gpus),
        ("gpus", gpus),
        ("all",),
    )
