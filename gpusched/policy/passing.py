"""Jobs that go past the first one of their bucket because reservations keep it from devices, and them from fewer.

Else the jobs of a bucket are alike: where the first one finds no place, no other does. With reservations ahead, a job
that is shorter than the first one may still start where the first one may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from gpusched.model.clock import Instant
from gpusched.model.job import Job, Request
from gpusched.policy.decisions import Decision, Preempt, Start
from gpusched.policy.fit import fit, possible
from gpusched.policy.limits import limited
from gpusched.policy.preempt import plan_preemption
from gpusched.policy.queue import goes_past
from gpusched.policy.reserve import closed, taken
from gpusched.policy.view import View
from gpusched.policy.waiting import Bucket


class Reach:
    """Tells of waiting jobs whether reservations leave them enough devices now. Remembers what it has found."""

    def __init__(self, view: View, now: Instant) -> None:
        self._view = view
        self._now = now
        self._found: dict[tuple[Request, frozenset[str]], bool] = {}

    def __call__(self, job: Job) -> bool:
        if not self._view.reservations:
            return True
        key = job.spec.request, closed(self._view, job, self._now)
        if key not in self._found:
            self._found[key] = not key[1] or possible(self._view, *key)
        return self._found[key]


def less_shut(view: View, bucket: Bucket, now: Instant, shut: frozenset[str]) -> Iterator[tuple[Job, frozenset[str]]]:
    """Jobs of a bucket that reservations keep from fewer devices than its first job, which they keep from `shut`,
    each with what they keep it from. The caller may start them on the way."""
    if not shut or bucket not in view.buckets:
        return
    level = view.rules.qos.get(bucket.qos)
    if (level is None or not level.preempts) and fit(view, view.head(bucket), taken(view, bucket.request)) is None:
        return  # there is no place for any of them, whatever is reserved for later
    for job in list(islice(view.queued(bucket), view.rules.policy.backfill_depth)):
        if view.array_full(job) or limited(view, job) is not None:
            return
        its = closed(view, job, now)
        if not shut <= its:
            yield job, its


def serve_less_shut(
    view: View, bucket: Bucket, now: Instant, shut: frozenset[str],
    kept: frozenset[str] = frozenset(), waiting: Job | None = None,
) -> Iterator[Decision]:  # fmt: skip
    """Start them, or ask others to leave for them. kept: devices that are kept for `waiting`, who goes before them."""
    failed: set[frozenset[str]] = set()
    for job, its in less_shut(view, bucket, now, shut):
        if its in failed:
            continue
        shares = fit(view, job, its | kept)
        if shares is not None:
            yield Start(job.id, shares, goes_past(view, waiting, tuple([share.uuid for share in shares])))
            continue
        plan = plan_preemption(view, job, now, its | kept)
        if plan is None:
            failed.add(its)
        else:
            yield Preempt(job.id, plan, goes_past(view, waiting, plan.devices))
