"""How long a job is expected to run, and from what that is known.

First what its owner says (--expect), then its time limit, then what similar jobs have shown. Of a prediction the high
end counts, which nine of ten similar jobs stayed below: others are promised a start by it, and a promise that is kept
early harms nobody. Both count seconds of running in all its attempts, without what its preemptions cost it.
"""

from __future__ import annotations

from typing import Protocol

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.policy.predict import Durations, Prediction

LEAST_LEFT = 60.0  # a job past its estimate is assumed to need so many seconds more …
LEAST_SHARE = 0.1  # … or this share of what it has run already, whichever is longer


class Knows(Protocol):
    """What is needed of the view."""

    durations: Durations
    live: dict[int, Attempt]


def total(view: Knows, job: Job) -> float | None:
    """Seconds of running in all that the job is expected to need: told, limited, or predicted; None: nobody knows."""
    if job.spec.expected is not None:
        return job.spec.expected
    if job.spec.time_limit is not None:
        return job.spec.time_limit
    worked = max(0.0, job.ran - job.lost)
    found = _predicted(view, job, worked)
    return None if found is None else worked + found.high


def remaining(view: Knows, job: Job, now: Instant) -> float | None:
    """Seconds that a live attempt still has to run, counted from now; what its preemptions cost it comes on top.

    A prediction is made anew for the time that it has run already. A job that has run for longer than anybody expected
    needs a little more, nobody knows how much (as Tsafrir, Etsion and Feitelson, 2007, correct predictions), but no
    attempt goes on past its time limit.
    """
    present = running_for(view, job, now)
    done = job.ran + present
    if job.spec.expected is None and job.spec.time_limit is None:
        found = _predicted(view, job, max(0.0, done - job.lost))
        if found is not None:
            return found.high
    whole = total(view, job)
    if whole is None:
        return None
    left = whole + job.lost - done
    left = left if left > 0 else max(LEAST_LEFT, LEAST_SHARE * done)
    limit = job.spec.time_limit
    return left if limit is None or present >= limit else min(left, limit - present)


def end_expected(view: Knows, job: Job, now: Instant) -> tuple[float, bool]:
    """When (boot clock) a live attempt has ended, and whether that is a bare guess: of whom nothing is known it is
    supposed that it runs as long again as it has run, as heavy tails have it."""
    seconds = remaining(view, job, now)
    return (now.boot + running_for(view, job, now), True) if seconds is None else (now.boot + seconds, False)


def time_left(view: Knows, job: Job) -> float | None:
    """Seconds that a waiting job is expected to run when it is started; None: nobody knows."""
    whole = total(view, job)
    return None if whole is None else max(0.0, whole + job.lost - job.ran)


def basis(view: Knows, job: Job) -> str:
    """From what its run time is known, in words; empty: from nothing."""
    if job.spec.expected is not None:
        return "its --expect"
    if job.spec.time_limit is not None:
        return "its time limit"
    found = _predicted(view, job, max(0.0, job.ran - job.lost))
    return "" if found is None else found.basis


def running_for(view: Knows, job: Job, now: Instant) -> float:
    """Seconds that its live attempt has run; 0 without one, or before it has started."""
    attempt = view.live.get(job.id)
    return 0.0 if attempt is None or attempt.started is None else max(0.0, now.boot - attempt.started)


def _predicted(view: Knows, job: Job, ran: float) -> Prediction | None:
    spec = job.spec
    return view.durations.predict(job.owner.user, job.account, spec.name, spec.request.gpus, ran)
