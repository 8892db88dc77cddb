"""Whether the elements of an array wait as one row or each in a row of its own, nobody can tell.

Two worlds live through the same story. In one, submits make rows as the engine does; in the other, every element has a
row from the start. After every event each job must be in the same state, on the same devices, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from builders import World
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.engine import submit
from gpusched.model import spans
from gpusched.model.array import ArraySpec
from gpusched.model.errors import GpuschedError
from gpusched.model.events import (
    CancelRequested,
    HoldRequested,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    UpdateRequested,
)
from gpusched.model.job import Job
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState

POLICIES = (PolicyName.FIFO, PolicyName.BACKFILL, PolicyName.FIT_FIRST, PolicyName.LAS, PolicyName.SRTF)
arrays = st.sampled_from(("0-5", "0-7%2", "1,3,5,8,13", "2-20:3", "0-5%1", "0,1,2,3,9,10,11"))
afters = st.sampled_from(
    (None, None, None, "singleton", "afterok:{}", "afterany:{}_3", "afternotok:{}", "aftercorr:{}")
)
levels = st.sampled_from(("low", "normal", "high"))
job_keys = st.one_of(
    st.integers(1, 30).map(str),
    st.builds("{}_{}".format, st.integers(1, 14), st.integers(0, 9)),
    st.builds("{}_[{}-{}]".format, st.integers(1, 14), st.integers(0, 3), st.integers(3, 9)),
)
steps = st.one_of(
    st.tuples(st.just("array"), arrays, afters, st.integers(1, 14), st.sampled_from(("normal", "high")), st.booleans()),
    st.tuples(st.just("job"), afters, st.integers(1, 14), levels, st.integers(0, 2)),
    st.tuples(st.just("start"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from((0, 0, 0, 1, 85))),
    st.tuples(st.just("ask"), st.sampled_from((CancelRequested, HoldRequested, ReleaseRequested)), job_keys),
    st.tuples(st.just("ask"), st.sampled_from((RequeueRequested, PreemptRequested)), job_keys),
    st.tuples(st.just("name"), job_keys, st.sampled_from(("a", "b"))),
    st.tuples(st.just("after"), job_keys, afters, st.integers(1, 14)),
    st.tuples(st.just("time"), st.sampled_from((1.0, 70.0, 700.0))),
    st.tuples(st.just("crash")),
)


@contextmanager
def one_row_each() -> Iterator[None]:
    """Arrays as they were before elements could wait as one row."""

    def rows(job: Job, array: ArraySpec) -> list[Job]:
        folded = real(job, array)
        return [
            replace(row, id=job.id + span.offset + place, array=replace(row.array, index=index), folded=())
            for row in folded
            if row.array is not None
            for span in row.elements
            for place, index in enumerate(span.indices)
        ]

    real: Callable[[Job, ArraySpec], list[Job]] = submit.array_rows
    with mock.patch.object(submit, "array_rows", rows):
        yield


def live(world: World, step: tuple[Any, ...]) -> Any:
    """One event of the story. Returns whether it was refused, and as what."""
    try:
        return _live(world, step)
    except GpuschedError as error:
        return type(error)


def _live(world: World, step: tuple[Any, ...]) -> Any:
    kind, *rest = step
    running = sorted(world.running())
    match kind:
        case "array":
            array, after, job, qos, hold = rest
            return world.submit(array=array, after=after and after.format(job), qos=qos, hold=hold and qos == "high")
        case "job":
            after, job, qos, gpus = rest
            return world.submit(after=after and after.format(job), qos=qos, gpus=gpus)
        case "start" if running:
            return world.started(running[rest[0] % len(running)])
        case "end" if running:
            return world.exits(running[rest[0] % len(running)], code=rest[1])
        case "ask":
            # how many answers there are differs; who is refused does not
            return {type(answer.error) for answer in world.ask(rest[0], rest[1])}
        case "name":
            return {type(answer.error) for answer in world.ask(UpdateRequested, rest[0], name=rest[1])}
        case "after":
            text = rest[1].format(rest[2]) if rest[1] else ""
            return {type(answer.error) for answer in world.ask(UpdateRequested, rest[0], dependency=text)}
        case "time":
            return world.passes(rest[0])
        case "crash":
            return world.crash()
    return None


def everything(world: World) -> dict[str, Any]:
    """What can be seen of every job, by its key."""
    found = {}
    for job_id in range(1, world.engine.state.next_job_id):
        job = world.job(job_id)
        waits = job.state is JobState.PENDING
        found[job.key] = (
            job.id, job.state, job.hold, world.where(job.id), job.attempt, job.restarts, job.dependency_met,
            job.dependency_failed, job.spec, job.earmark, job.eligible_at, job.ended_because, job.yielding,
            world.why(job.id).word if waits else None,
            [kind for kind in world.kinds(row_of(world, job_id)) if kind != "dependency-met"],
        )  # fmt: skip
    return found


def row_of(world: World, job_id: int) -> int:
    row = world.engine.state.row(job_id) or world.store.job(job_id)
    assert row is not None
    return row.id


@pytest.mark.parametrize("policy", POLICIES)
@settings(PROFILE, max_examples=PROFILE.max_examples // 3)
@given(story=st.lists(steps, max_size=14), gpus=st.integers(1, 3))
def test_folded_or_not_every_job_is_in_the_same_state(
    policy: PolicyName, story: list[tuple[Any, ...]], gpus: int
) -> None:
    rules = Rules(policy=PolicyRules(name=policy, min_run=0.0), cpu_jobs=2)
    folded, apart = World(gpus, rules=rules), World(gpus, rules=rules)
    for step in story:
        said = live(folded, step)
        with one_row_each():
            assert said == live(apart, step), f"{step} is answered differently"
        assert everything(folded) == everything(apart), f"different after {step}"
    assert all(not job.folded for job in apart.engine.state.jobs.values())


def test_the_second_world_of_this_file_has_a_row_for_each_element() -> None:
    world = World(1)
    with one_row_each():
        ids = world.submitted(array="1,3,5-9:2").job_ids
    assert [world.row(job_id).key for job_id in ids] == ["1_1", "1_3", "1_5", "1_7", "1_9"]
    assert spans.size(world.row(ids[0]).elements) == 1
