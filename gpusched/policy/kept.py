"""What backfill keeps for the first job that waits: from when on which devices it could run, by what is known and
guessed of the ends of those that run. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Attempt, Job
from gpusched.policy.elastic import offers, settling
from gpusched.policy.expected import end_expected, time_left
from gpusched.policy.fit import fit
from gpusched.policy.holdings import Lifted
from gpusched.policy.reserve import closed, competes_for, openings
from gpusched.policy.view import View

End = tuple[float, Attempt | None]  # boot clock, and who ends then


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept for the first of those who wait for one kind of devices.

    until: boot clock; when it is expected to start on `devices`. None: it needs none, or not even the ends of all who
    run now would do. guessed: nobody knows when those end whom it waits for, so those who go past it are counted.
    """

    job: Job
    kind: frozenset[str]
    until: float | None
    devices: frozenset[str]
    guessed: bool

    def counts(self, devices: frozenset[str]) -> bool:
        """Whether a job that starts on these goes past this one at its risk."""
        return self.guessed and (self.until is None or not self.devices.isdisjoint(devices))


def no_more(view: View, kept: Kept) -> bool:
    """So many have gone past on a guess that nobody does any more."""
    return kept.guessed and kept.job.bypassed >= view.rules.bypass_limit


def time_wanted(view: View, job: Job) -> tuple[float, bool]:
    """Seconds that a waiting job is expected to run when it is started, and whether that is a bare guess."""
    seconds = time_left(view, job)
    return (view.rules.policy.hold, True) if seconds is None else (seconds, False)


def keep_for(view: View, now: Instant, job: Job) -> Kept:
    """When and where `job` could start first, if running jobs end as expected and nobody new gets in its way. By what
    is known of them if that is enough, else by guesses too."""
    request, kind = job.spec.request, competes_for(view, job.spec.request)
    if request.gpus:
        others = openings(view, job, now)
        if view.elastic:
            others = [*others, *settling(view, now)]
        ahead = ends(view, now, view.kind(request), others)
        known = [(end, leaving) for end, unknown, leaving in ahead if not unknown]
        found = _first_fit(view, now, job, known)
        if found is not None:
            return Kept(job, kind, *found, guessed=False)
        if len(known) < len(ahead):
            found = _first_fit(view, now, job, [(end, leaving) for end, _, leaving in ahead])
        if found is not None:
            return Kept(job, kind, *found, guessed=True)
    return Kept(job, kind, None, frozenset(), guessed=True)


def _first_fit(view: View, now: Instant, job: Job, ahead: list[End]) -> tuple[float, frozenset[str]] | None:
    """When (boot clock) and on which devices the job fits first, if these end one after the other."""
    lifted: Lifted = []
    try:
        for attempt in view.departing(job):
            view.lift(attempt, lifted)
        for end, leaving in ahead:
            if leaving is not None:
                view.lift(leaving, lifted)
            if view.elastic:  # what they will give back for it
                for offer in offers(view, job, now.later(end - now.boot)):
                    view.lift(offer.attempt, lifted, offer.uuids)
            shares = None if _too_few(view, job) else fit(view, job, closed(view, job, now.later(end - now.boot)))
            if shares is not None:
                return end, frozenset(share.uuid for share in shares)
    finally:
        view.put_back(lifted)
    return None


def _too_few(view: View, job: Job) -> bool:
    request = job.spec.request
    return not request.shared and view.pool(request).open < request.gpus


def ends(
    view: View, now: Instant, kind: frozenset[str], others: Iterable[float] = ()
) -> list[tuple[float, bool, Attempt | None]]:
    """The running attempts on devices of this kind by when (boot clock) they are expected to end, and whether that is
    a bare guess.

    others: moments at which something else ends (windows of reservations, the rest of elastic jobs); they come without
    an attempt.
    """
    found: list[tuple[float, int, bool, Attempt | None]] = [(moment, 0, False, None) for moment in others]
    for job_id, attempt in view.live.items():
        if job_id in view.stopping or not any(share.uuid in kind for share in attempt.devices):
            continue
        end, unknown = end_expected(view, view.jobs[job_id], now)
        found.append((end, job_id, unknown, attempt))
    found.sort(key=lambda entry: entry[:2])
    return [(end, unknown, attempt) for end, _, unknown, attempt in found]
