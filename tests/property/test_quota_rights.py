"""Quotas in random situations under every policy: what an account has as of right it gets, and nobody over a quota
takes it. Who is over a quota is worked out here from jobs and attempts alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from builders import World
from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.engine import schedule
from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.limits import LimitRules
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.cycle import cycle
from gpusched.policy.decisions import Decision, Evict, Preempt
from gpusched.policy.view import View

DEVICES = 3
submits = st.fixed_dictionaries(
    {"by": st.sampled_from(("ann", "bob", "root")), "qos": st.sampled_from(("low", "normal", "high")),
     "gpus": st.integers(1, 2)}
)  # fmt: skip
actions = st.lists(st.one_of(submits, submits, st.integers(0, 2)), min_size=2, max_size=14)
quotas = st.fixed_dictionaries({"*": st.sampled_from((0.0, 1.0)), "bob": st.sampled_from((1.0, 2.0))})


def running_over(view: View) -> set[int]:
    """Of each account's running jobs that stay, the latest started ones, until the rest is within the quota."""
    found = set()
    for account in {job.account for job in view.jobs.values()}:
        quota = view.rules.limits.quota_of(account)
        live = [a for a in view.live.values() if view.jobs[a.job_id].account == account]
        live = sorted((a for a in live if view.jobs[a.job_id].stop is None), key=lambda a: (a.created, a.job_id))
        used = 0
        for attempt in live:
            used += len(attempt.devices)
            if quota is not None and used > quota:
                found.add(attempt.job_id)
    return found


def would_be_over(view: View, job: Job) -> bool:
    """Its account would hold more than its quota if it started now."""
    quota = view.rules.limits.quota_of(job.account)
    others = [other for other in view.jobs.values() if other.account == job.account and other.id != job.id]
    held = sum(len(view.live[other.id].devices) for other in others if other.id in view.live)
    claimed = sum(len(other.earmark) for other in others if other.id in view.claimants)
    return quota is not None and held + claimed + job.spec.request.gpus > quota


def watched(view: View, now: Instant) -> Iterator[Decision]:
    """The decisions of a cycle, each looked at before it is carried out."""
    for decision in cycle(view, now):
        victims = decision.victims if isinstance(decision, Evict) else ()
        if isinstance(decision, Preempt):
            victims = decision.plan.victims
            job = view.jobs[decision.job_id]
            assert not victims or not would_be_over(view, job), f"job {job.key} is over a quota: {decision}"
        borrowed = running_over(view)
        for attempt in victims:
            victim, job = view.jobs[attempt.job_id], view.jobs[decision.job_id]
            lower = view.priority(victim) < view.priority(job)
            alike = victim.spec.qos == job.spec.qos and view.rules.policy.name.preemptive
            assert lower or alike or victim.id in borrowed, f"job {victim.key} has a right to its devices: {decision}"
        yield decision


def a_history(policy: PolicyName, quota: dict[str, float], history: list[Any]) -> World:
    rules = Rules(limits=LimitRules(quota=quota), policy=PolicyRules(name=policy, tick=0.0, min_run=0.0))
    world = World(DEVICES, rules=rules)
    for action in history:
        if isinstance(action, dict):
            world.submit(**action)
        elif running := sorted(world.running()):
            world.exits(running[action % len(running)])
        settle(world)
    return world


def settle(world: World) -> None:
    """Whoever starts watches for requests; whoever is asked to leave saves and does."""
    for _ in range(40):
        world.passes(1.0)
        for job_id in sorted(world.running()):
            if world.job(job_id).state is JobState.STARTING:
                world.started(job_id)
                world.watches(job_id)
        leaving = [i for i in sorted(world.running()) if world.job(i).state is JobState.STOPPING]
        for job_id in leaving:
            world.exits(job_id, code=85, saved_step=1)
        if not leaving:
            return
    raise AssertionError("they have each other leave for ever")


@given(st.sampled_from(PolicyName), quotas, actions)
@PROFILE
def test_who_is_first_and_within_its_quota_waits_for_nobody_who_is_over_one(policy, quota, history):
    with patch.object(schedule, "cycle", watched):
        world = a_history(policy, quota, history)
    view = world.engine.view
    waiting = sorted(view.waiting(), key=view.order)
    if not waiting or would_be_over(view, waiting[0]):
        return
    free = DEVICES - sum(len(attempt.devices) for attempt in view.live.values())
    borrowed = sum(len(view.live[job_id].devices) for job_id in running_over(view))
    assert waiting[0].spec.request.gpus > free + borrowed, world.why(waiting[0].id)


@given(quotas, actions)
@PROFILE
def test_nothing_stays_free_because_of_a_quota(quota, history):
    view = a_history(PolicyName.FIT_FIRST, quota, history).engine.view
    free = DEVICES - sum(len(attempt.devices) for attempt in view.live.values())
    assert all(job.spec.request.gpus > free for job in view.waiting())
