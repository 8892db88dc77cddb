"""How long jobs run, learned from those that have ended: estimates for people and reservations, an index for order.

A job is compared with the most similar ones that are known: of the same user and name on as many devices, then of
less and less in common, down to all jobs (after Helios, SC'21). Two jobs of one user are of similar names if only
their digits differ: people number their runs. What is known of a class is its latest KEPT run times.

It must not know the view, jobs or the clock: it learns one `Past` after the other and answers from nothing else, so
that nobody can peek at what has not happened yet.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil

from gpusched.model.past import REMEMBERED, Past

KEPT = 200  # run times of a class that it remembers: more neither helped nor hurt on fifteen traces
CLASSES = 5000  # past that, the ones that have not grown for longest are forgotten
ENOUGH = 3  # similar jobs, all of which ran longer than this one has, before anybody is told an estimate
GROWTH = 0.1  # the index follows when a class has grown by so much of itself: it hardly changes before
UNKNOWN = 600.0  # seconds: a job of which nothing is known needs at least so much, and as long again as it has run

_DIGITS = re.compile(r"\d+")
ClassKey = tuple[str | int, ...]


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
class RunTimes:
    """The run times of one class of jobs, and an index made from them.

    The index is Gittins': of all amounts of time that a job could be given, the one with the most chance of an end
    per second spent. For a job that has run `a` seconds it is min over Δ of E[min(S − a, Δ) | S > a] / P(S − a ≤ Δ |
    S > a), in seconds, smaller is better; Tiresias (NSDI'19) orders by it where the distribution is known. It is the
    remaining time if all run times are equal, and grows with `a` where tails are heavy.

    Among the known jobs there is one more that never ends. One sample then weighs little, as it should, and the index
    of few is near to that of a job of which nothing is known.
    """

    latest: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)
    learned: int = 0
    # ---- the index, as it was when `indexed` run times had been learned
    indexed: int = 0
    # Run times, ascending; seconds that all had run together when each was so old; the age at which one that is so old
    # should end, or -1. One value, so that a reader in another thread sees one state of it.
    curve: tuple[Sequence[float], Sequence[float], Sequence[int]] = ((), (), ())
    new: float | None = None  # the index of a job that has not run yet: asked for every job that waits
    whole: tuple[int, Prediction | None] | None = None  # how many had been learned; the prediction for one that is new

    def learn(self, ran: float) -> bool:
        """One more run time. Returns whether the index has followed."""
        if len(self.latest) >= KEPT:
            old = self.latest.popleft()
            del self.ordered[bisect_right(self.ordered, old) - 1]
        self.latest.append(ran)
        insort(self.ordered, ran)
        self.learned += 1
        if self.learned - self.indexed < GROWTH * min(self.learned, KEPT):
            return False
        self._make_index()
        return True

    def longer_than(self, ran: float) -> Sequence[float]:
        """The run times above this one, ascending."""
        return self.ordered[bisect_right(self.ordered, ran) :]

    def prediction(self, key: ClassKey, ran: float) -> Prediction | None:
        """Of a job of this class (by its key) that has run so many seconds; None: too few have run longer."""
        if ran > 0:
            return _prediction(key, self.longer_than(ran), ran)
        learned = self.learned
        if self.whole is None or self.whole[0] != learned:
            self.whole = learned, _prediction(key, self.longer_than(ran), ran)
        return self.whole[1]

    def index(self, ran: float) -> float | None:
        """The index, in seconds, of a job that has run so long; None if no known one has run longer."""
        return self._index(ran) if ran > 0 else self.new

    def _index(self, ran: float) -> float | None:
        times, spent, best = self.curve
        place = bisect_right(times, ran)
        if place == len(times):
            return None
        before, since = (spent[place - 1], ran - times[place - 1]) if place else (0.0, ran)
        now = before + since * (len(times) - place + 1)
        at = place
        least = spent[at] - now
        while (following := best[at]) >= 0:
            other = (spent[following] - now) / (following - place + 1)
            if other > least:
                break
            least, at = other, following
        return least

    def _make_index(self) -> None:
        """The points (i, spent[i]) from the right, and of each the next corner of the lower convex hull of those
        behind it: the smallest slope from a point is the index at its age."""
        self.indexed = self.learned
        times = list(self.ordered)
        count = len(times)
        spent, best = [0.0] * count, [-1] * count
        total = last = 0.0
        for place, time in enumerate(times):
            total += (time - last) * (count - place + 1)
            spent[place] = total
            last = time
        for place in range(count - 2, -1, -1):
            at = place + 1
            while (following := best[at]) >= 0 and (spent[following] - spent[place]) * (at - place) <= (
                spent[at] - spent[place]
            ) * (following - place):
                at = following
            best[place] = at
        self.curve = times, spent, best
        self.new = self._index(0.0)


class Durations:
    """What the jobs that have ended say about the others.

    What it is told it takes in when somebody asks: most policies never do. Of all that has been told since somebody
    asked last the latest REMEMBERED count, as after a restart.

    version: changes when ranks may have changed; waiting jobs that were ranked before can be ranked anew then.
    """

    def __init__(self) -> None:
        self._version = 0
        self._classes: dict[ClassKey, RunTimes] = {}
        self._told: deque[Past] = deque(maxlen=REMEMBERED)

    @property
    def version(self) -> int:
        self.take_in()
        return self._version

    def learn(self, past: Past) -> None:
        """A job has ended."""
        self._told.append(past)

    def take_in(self) -> None:
        """Learn from what has been told: some twenty microseconds for each job, whatever is known already."""
        while self._told:
            past, moved = self._told.popleft(), False
            for key in _keys(past.user, past.account, past.name, past.gpus):
                known = self._classes.pop(key, None) or RunTimes()
                moved |= known.learn(past.ran)
                self._classes[key] = known
            while len(self._classes) > CLASSES:
                del self._classes[next(iter(self._classes))]
            self._version += moved

    def predict(self, user: str, account: str, name: str, gpus: int, ran_already: float) -> Prediction | None:
        """How long a job goes on that has run so many seconds; None when there is too little to go by."""
        self.take_in()
        for key in _keys(user, account, name, gpus):
            known = self._classes.get(key)
            found = known.prediction(key, ran_already) if known is not None else None
            if found is not None:
                return found
        return None

    def index(self, user: str, account: str, name: str, gpus: int, ran: float) -> float:
        """Seconds to order by, smaller first, for a job that has run so long: see RunTimes. It answers from a single
        similar job, and without any as for the heaviest tails: that it needs as long again as it has run."""
        self.take_in()
        for key in _keys(user, account, name, gpus):
            known = self._classes.get(key)
            seconds = known.index(ran) if known is not None else None
            if seconds is not None:
                return seconds
        return max(ran, UNKNOWN)


@lru_cache(maxsize=10_000)
def _keys(user: str, account: str, name: str, gpus: int) -> tuple[ClassKey, ...]:
    """The classes that a job belongs to, those with most in common first."""
    keys: list[ClassKey] = [("user name", user, name, gpus), ("name", name, gpus)]
    pattern = _DIGITS.sub("#", name)
    if pattern != name:
        keys.append(("user like", user, pattern, gpus))
    keys.append(("user", user, gpus))
    if account != user:
        keys.append(("account", account, gpus))
    keys.append(("gpus", gpus))
    keys.append(("all",))
    return tuple(keys)


def _prediction(key: ClassKey, longer: Sequence[float], ran: float) -> Prediction | None:
    if len(longer) < ENOUGH:
        return None
    low, middle, high = (_quantile(longer, share) - ran for share in (0.2, 0.5, 0.9))
    return Prediction(
        sum(longer) / len(longer) - ran, low, middle, high, len(longer), _words(key, len(longer), ran > 0)
    )


def _words(key: ClassKey, count: int, longer: bool) -> str:
    """`12 jobs named train by ann on 4 devices`; `longer`: only those count that ran longer than the one asked for."""
    jobs = f"{count} {'longer ' if longer else ''}{'jobs' if count != 1 else 'job'}"
    match key:
        case ("all",):
            return jobs
        case ("user name", user, name, _):
            jobs += f" named {name} by {user}"
        case ("name", name, _):
            jobs += f" named {name}"
        case ("user like", user, pattern, _):
            jobs += f" named like {pattern} by {user}"
        case ("user", user, _):
            jobs += f" by {user}"
        case ("account", account, _):
            jobs += f" of {account}"
    gpus = key[-1]
    return f"{jobs} on {gpus} {'devices' if gpus != 1 else 'device'}"


def _quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest of the numbers that at least this share of them does not exceed (nearest rank)."""
    return ascending[max(0, ceil(share * len(ascending) - 1e-9) - 1)]
