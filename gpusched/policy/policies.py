"""The policies, each in one row: how waiting jobs are ordered, and how they are served.

A policy is pure: it reads the view and the time passed in, and yields decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.policy import PolicyName
from gpusched.model.rules import Rules
from gpusched.policy import backfill, fitfirst, inorder, priority, slices
from gpusched.policy.decisions import Decision
from gpusched.policy.view import View
from gpusched.policy.waiting import Rank


@dataclass(frozen=True, slots=True)
class Policy:
    """rank: where a waiting job stands among those of its level, smaller first; constant while it waits, unless the
    view is told to `rank_anew`. serve: the decisions about those who wait. next_look: when (boot clock) the passing
    of time alone can make it decide otherwise; None: never."""

    name: PolicyName
    rank: Callable[[View, Job], Rank]
    serve: Callable[[View, Instant], Iterator[Decision]]
    next_look: Callable[[View, Instant], float | None] = lambda view, now: None


POLICIES: dict[PolicyName, Policy] = {
    policy.name: policy
    for policy in (
        Policy(PolicyName.FIFO, inorder.submission, inorder.serve),
        Policy(PolicyName.SJF, inorder.duration, inorder.serve),
        Policy(PolicyName.BACKFILL, priority.rank, backfill.serve, backfill.next_look),
        Policy(PolicyName.FIT_FIRST, priority.rank, fitfirst.serve),
        Policy(PolicyName.SRTF, slices.by_time_left, slices.serve, slices.next_look),
        Policy(PolicyName.SRSF, slices.by_service_left, slices.serve, slices.next_look),
        Policy(PolicyName.LAS, slices.by_attained, slices.serve, slices.next_look),
        Policy(PolicyName.PREDICTED, slices.by_prediction, slices.serve, slices.next_look),
    )
}


def policy_of(rules: Rules) -> Policy:
    """The policy that the rules name."""
    return POLICIES[rules.policy.name]
