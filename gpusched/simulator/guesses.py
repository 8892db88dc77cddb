"""How long jobs may still run, for a forecast: at least, as expected, and at most.

What was said of a job is taken as it is. Pure: everything is passed in.
"""

from __future__ import annotations

from enum import Enum

from gpusched.model.job import Job
from gpusched.policy.expected import LEAST_LEFT, LEAST_SHARE, Knows


class Guess(Enum):
    SHORT = "short"  # everybody ends as early as jobs like it did (20 %)
    LIKELY = "likely"  # as policies expect it
    LONG = "long"  # everybody uses up its time limit, or runs as long as jobs like it did (90 %)


def seconds_left(view: Knows, job: Job, running: float, guess: Guess) -> float | None:
    """Seconds that a job still runs whose live attempt has run for `running` seconds. None: nobody knows.

    1. What its owner expects (--expect). At most its time limit, where there is one. Past what was expected: at least
       nothing at all, else a little more, as policy/expected.py has it.
    2. The time limit. At least what 20 % of the jobs like it stayed below.
    3. What jobs like it took: 20 %, half, 90 % of them stayed below.
    """
    spec, done = job.spec, job.ran + running
    found = view.durations.predict(job.owner.user, job.account, spec.name, spec.request.gpus, done)
    told = spec.expected
    if guess is Guess.LONG and spec.time_limit is not None:
        told = spec.time_limit
    if told is not None:
        return _beyond(told + job.lost - done, done, guess)
    if spec.time_limit is not None:
        left = _beyond(spec.time_limit + job.lost - done, done, guess)
        return min(left, found.low) if found is not None and guess is Guess.SHORT else left
    if found is None:
        return None
    return {Guess.SHORT: found.low, Guess.LIKELY: found.middle, Guess.LONG: found.high}[guess]


def _beyond(left: float, done: float, guess: Guess) -> float:
    if left > 0:
        return left
    return 0.0 if guess is Guess.SHORT else max(LEAST_LEFT, LEAST_SHARE * done)
