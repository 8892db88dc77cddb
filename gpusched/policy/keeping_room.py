"""Room under limits kept for jobs past the policy's patience: else they could starve.

A job at a limit is passed, and those who pass it may be under the same limit: a gang of a group at its limit would see
each device that the group gives back go to a smaller job of the group behind it, also to one of a lower level. So once
its patience is over, what is left of that limit is kept from all who stand behind it, until it runs.
"""

from __future__ import annotations

from gpusched.model.clock import Instant
from gpusched.policy.fit import possible
from gpusched.policy.limits import forbidden, full
from gpusched.policy.reserve import closed
from gpusched.policy.view import View


def keep_room(view: View, now: Instant) -> None:
    """Say for whom every limit is kept now: the first job past its patience that only lacks room under it."""
    usage = view.in_use
    if not usage.active:
        return
    usage.keep_nothing()
    heads = [view.head(bucket) for bucket in view.buckets if bucket.overdue]
    for job in sorted(heads, key=view.order):
        tallies = usage.of(job)
        at_limit = [tally for tally in tallies if full(view, job, tally)]
        if not at_limit or any(tally.kept_for is not None for tally in at_limit):
            continue
        if view.array_full(job) or forbidden(usage.rules, job, ((t.scope, t.limits) for t in tallies)) is not None:
            continue
        if job.spec.request.gpus == 0 or possible(view, job.spec.request, closed(view, job, now)):
            for tally in at_limit:
                usage.keep(tally, job.id)
