"""Estimated starts: a running engine's state is rolled forward three times, with short, likely and long run times.

What is assumed, and said wherever estimates are shown: nobody submits, cancels or changes anything from now on, every
job ends well, and a job that is asked to leave does so at once (in the long roll: at the end of its grace period).
`earliest` and `latest` are the first and the last start in the three rolls; with the last roll open, `latest` is None.
A roll is bounded in virtual time, in steps, and by the caller's patience: who has not started by then has no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from gpusched.engine.picture import Picture
from gpusched.model.changes import Reply, Submitted
from gpusched.model.clock import Instant
from gpusched.model.errors import GpuschedError
from gpusched.model.events import JobSubmitted
from gpusched.model.job import Job
from gpusched.model.state import JobState
from gpusched.simulator.guesses import Guess
from gpusched.simulator.roll import Roll

HORIZON = 90 * 86400.0  # virtual seconds
MOST_STEPS = 20_000  # of one roll
NAMED = 3  # jobs that a sentence names
Enough = Callable[[], bool]  # asked once a step: the caller's patience is over


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a job starts, wall clock. None: nobody can say; `because` then has a sentence."""

    earliest: float | None
    expected: float | None
    latest: float | None
    because: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The estimates, by job id, of those who were asked for. complete: no roll was cut short."""

    made_at: Instant
    estimates: dict[int, Estimate]
    complete: bool = True
    submitted: tuple[int, ...] = ()  # the job that the forecast itself submitted; of an array its first element
    steps: int = 0  # of all three rolls


@dataclass(slots=True)
class _Bounds:
    """When a roll has gone far enough."""

    enough: Enough
    until: float  # boot clock
    cut: bool = field(default=False)

    def __call__(self, roll: Roll) -> bool:
        if roll.now.boot > self.until or roll.steps >= MOST_STEPS or self.enough():
            self.cut = True
        return self.cut


def forecast(
    picture: Picture,
    asked: Collection[int] | None = None,
    submit: JobSubmitted | None = None,
    enough: Callable[[Guess], Enough] = lambda guess: lambda: False,
) -> Forecast:
    """When the waiting jobs of the picture would start.

    asked: their ids; None: all that wait, or if something is submitted what that makes. submit: a job that is put in
    first. enough: makes, for each roll, what ends it early. Raises what the submit would raise.
    """
    first = (submit,) if submit is not None else ()
    if asked is None and submit is None:
        asked = [job.id for job in picture.snapshot.jobs if waits(job)]
    rolls: list[Roll] = []
    cut = False
    submitted: tuple[int, ...] = ()
    for guess in Guess:
        roll, bounds = Roll(picture, guess), _Bounds(enough(guess), picture.now.boot + HORIZON)
        submitted = _ids(roll.run(first, asked, bounds))
        cut |= bounds.cut
        rolls.append(roll)
    about = [*(asked or ()), *submitted]
    estimates = {job_id: _estimate(rolls, job_id) for job_id in about}
    return Forecast(picture.now, estimates, not cut, submitted, sum(roll.steps for roll in rolls))


def waits(job: Job) -> bool:
    """It is about to be started some time, without anybody doing anything."""
    return job.state is JobState.PENDING and job.hold is None and job.spec.cron is None and not job.dependency_failed


def _ids(replies: Sequence[Reply]) -> tuple[int, ...]:
    for reply in replies:
        if isinstance(reply, GpuschedError):
            raise reply
        if isinstance(reply, Submitted):
            return tuple(reply.job_ids[:1])  # of an array its first element: there may be a million of them
    return ()


def _estimate(rolls: Sequence[Roll], job_id: int) -> Estimate:
    short, likely, long = (roll.starts.get(job_id) for roll in rolls)
    found = [start for start in (short, likely, long) if start is not None]
    open_ended = next((roll for roll in (rolls[1], rolls[2], rolls[0]) if job_id not in roll.starts), None)
    because = _why_not(open_ended, job_id) if open_ended is not None else ""
    if likely is None:
        return Estimate(None, None, None, because)
    latest = max(found) if long is not None and short is not None else None
    return Estimate(min(found), likely, latest, because)


def _why_not(roll: Roll, job_id: int) -> str:
    """Why a job has not started by the end of a roll."""
    job = roll.engine.state.row(job_id)  # of an element that waits folded into a row, that row
    if job is None or job.state.final:
        return f"it would never start: {job.ended_because}" if job is not None else "it would never start"
    if not waits(job):
        return "it waits for somebody to release or change it"
    endless = _to_blame(roll, job)
    if endless:
        names = ", ".join(other.key for other in endless[:NAMED])
        more = f" and {len(endless) - NAMED} more" if len(endless) > NAMED else ""
        many = len(endless) > 1
        return (
            f"job{'s' if many else ''} {names}{more} {'have' if many else 'has'} no time limit and nothing like "
            f"{'them' if many else 'it'} has run before, so nobody can say"
        )
    if not roll.complete:
        days = (roll.now.boot - roll.picture.now.boot) / 86400
        return f"not within the next {days:.0f} days" if days >= 1 else "too many jobs are ahead of it"
    return "nothing that is expected to happen would let it start"


def _to_blame(roll: Roll, job: Job) -> list[Job]:
    """The jobs whose ends nobody knows and that this one waits for: on its devices, or by its dependency."""
    jobs = roll.engine.state.jobs
    names = set(job.spec.dependency.keys) if job.spec.dependency is not None else set()
    endless = [jobs[job_id] for job_id in roll.endless()]
    named = [other for other in endless if other.key in names or str(other.id) in names]
    return named or [other for other in endless if roll.in_the_way(other, job)]
