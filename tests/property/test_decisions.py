"""Decisions in random situations: victims are few and all needed, previews come true, promises do not overlap."""

from __future__ import annotations

from typing import Any

from builders import GIB, World, gpu
from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.model.actions import Ask, Launch
from gpusched.model.errors import GpuschedError
from gpusched.model.job import Attempt, Job
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy import explain
from gpusched.policy.fit import fit
from gpusched.policy.preempt import candidates, plan_preemption

GPUS = (gpu(0), gpu(1), gpu(2, gib=48), gpu(3, "NVIDIA H100 80GB HBM3", 80))
levels = st.sampled_from(("low", "normal", "high"))
exclusive = st.fixed_dictionaries(
    {"qos": levels, "gpus": st.integers(0, 4)},
    optional={"gpu_mem_mib": st.sampled_from((30 * GIB, 60 * GIB)), "array": st.sampled_from(("0-2%1", "0-1"))},
)
sharing = st.fixed_dictionaries(
    {
        "qos": levels, "gpus": st.integers(1, 2), "shared": st.just(True),
        "gpu_mem_mib": st.integers(4, 60).map(GIB.__mul__),
    }
)
wanted = st.one_of(exclusive, sharing)
endings = st.tuples(st.integers(0, 9), st.booleans())  # which running job ends, and whether its devices are seen free
situations = st.lists(st.one_of(wanted, endings), max_size=14)


def a_world(situation: list[Any], rules: Rules | None = None) -> World:
    world = World(*GPUS, rules=rules or Rules(bypass_limit=2, cpu_jobs=2))
    for item in situation:
        if isinstance(item, tuple):
            running = sorted(world.running())
            if running:
                world.exits(running[item[0] % len(running)], clear=item[1])
        else:
            try:
                world.submit(**item)
            except GpuschedError:
                pass  # more than the machine has
    return world


@given(situations, wanted)
@PROFILE
def test_a_preview_says_what_a_submit_then_does(situation: list[Any], job: dict[str, Any]) -> None:
    world = a_world(situation)
    world.pending.clear()
    try:
        said = world.preview(**job)
    except GpuschedError as error:
        try:
            world.submit(**job)
        except GpuschedError as same:
            assert same.message == error.message
            return
        raise AssertionError(f"the preview refused what the submit took: {error.message}") from error
    before = set(world.engine.state.jobs)
    reply = world.submitted(**job)
    first = reply.job_ids[0]
    assert not before & set(reply.job_ids)
    said = said.partition("; the first ")[2] or said
    victims = [a.attempt.job_id for a in world.take(Ask)]
    if said.startswith("would start now on "):
        (launch, *_) = world.take(Launch)
        assert launch.attempt.job_id == first
        assert reply.note == said.replace("would start now", "starting")
    elif said.startswith("would preempt job "):
        named = said.removeprefix("would preempt job ").split(", ")
        assert [world.job(v).key for v in victims[: len(named)]] == named
        assert world.job(first).earmark
    elif said.startswith("would wait for jobs that are leaving"):
        assert world.job(first).earmark
    else:
        word = said.removeprefix("would wait (").partition(":")[0]
        assert world.states(first) == [JobState.PENDING]
        assert world.why(first).word == word


@given(situations, levels, st.integers(1, 4))
@PROFILE
def test_no_victim_is_asked_that_is_not_needed(situation: list[Any], qos: str, gpus: int) -> None:
    world = a_world(situation)
    view = world.engine.view
    job = a_waiting_job(world, qos, gpus)
    plan = plan_preemption(view, job, world.now)
    possible = candidates(view, job)
    with view.without([*view.departing(job), *possible]):
        could_fit = fit(view, job) is not None
    assert (plan is not None) == (could_fit and qos != "low")  # low preempts nobody
    if plan is None:
        return
    assert len(plan.devices) == len(set(plan.devices)) == gpus
    assert all(attempt in possible for attempt in plan.victims)
    with view.without([*view.departing(job), *plan.victims]):
        assert {share.uuid for share in fit(view, job) or ()} == set(plan.devices)
    for spared in plan.victims:
        with view.without([*view.departing(job), *(a for a in plan.victims if a is not spared)]):
            assert fit(view, job) is None, f"{spared.key} need not leave"
    for attempt in plan.victims:
        assert set(attempt.uuids) & set(plan.devices), f"{attempt.key} leaves nothing to the job"


@given(situations, st.integers(1, 4))
@PROFILE
def test_a_lower_level_is_asked_before_a_higher_one(situation: list[Any], gpus: int) -> None:
    world = a_world(situation)
    view = world.engine.view
    job = a_waiting_job(world, "high", gpus)
    plan = plan_preemption(view, job, world.now)
    if plan is None or not any(level(world, attempt) == "normal" for attempt in plan.victims):
        return
    lows = [attempt for attempt in candidates(view, job) if level(world, attempt) == "low"]
    with view.without([*view.departing(job), *lows]):
        assert fit(view, job) is None, "the low ones would have been enough"


@given(situations)
@PROFILE
def test_no_device_is_promised_to_two_jobs(situation: list[Any]) -> None:
    world = a_world(situation)
    promised = [uuid for job_id in world.engine.view.claimants for uuid in world.job(job_id).earmark]
    assert len(promised) == len(set(promised))


@given(situations)
@PROFILE
def test_ahead_is_in_order_and_devices_agree_with_the_reason(situation: list[Any]) -> None:
    world = a_world(situation)
    view = world.engine.view
    for job in list(view.waiting()):
        ahead = explain.ahead(view, job, world.now)
        orders = [view.order(world.job(a.job_id)) for a in ahead]
        assert orders == sorted(orders)
        assert all(order < view.order(job) for order in orders)
        usable = [d for d in explain.devices(view, job, world.now) if d.usable]
        if job.spec.request.gpus and len(usable) >= job.spec.request.gpus:
            why = explain.reason(view, job, world.now)
            assert why.word in ("Priority", "JobArrayTaskLimit", "Preempting"), (why, usable)


def level(world: World, attempt: Attempt) -> str:
    return world.job(attempt.job_id).spec.qos


def a_waiting_job(world: World, qos: str, gpus: int) -> Job:
    return world.job(world.submit(qos=qos, gpus=gpus, hold=True))
