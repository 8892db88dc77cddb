"""Every waiting job's reason is true under every policy: if what it names were otherwise, things would be otherwise.

What would be is tried out on a second engine, made from a picture of the first.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from builders import GIB, PEOPLE, World, gpu
from futures import set_going
from hypothesis import event, given
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.engine.engine import Engine
from gpusched.engine.picture import revive, take
from gpusched.model.errors import GpuschedError
from gpusched.model.events import AttemptExited, CancelRequested, ReleaseRequested, Woke
from gpusched.model.job import Job
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind
from gpusched.policy import explain
from gpusched.policy.explain import Word

DONE = Outcome(OutcomeKind.EXITED, code=0)
GPUS = (gpu(0), gpu(1), gpu(2), gpu(3, "NVIDIA H100 80GB HBM3", 80))
lengths = st.fixed_dictionaries(
    {}, optional={"time_limit": st.sampled_from((600.0, 5000.0)), "expected": st.sampled_from((300.0, 20_000.0))}
)
usual = st.fixed_dictionaries(
    {"qos": st.sampled_from(("low", "normal", "normal", "high")), "gpus": st.integers(1, 3),
     "by": st.sampled_from(("ann", "bob"))},
    optional={"nice": st.sampled_from((10, 500))},
)  # fmt: skip
odd = st.fixed_dictionaries(
    {"gpus": st.sampled_from((0, 1, 4))},
    optional={"array": st.just("0-2%1"), "hold": st.just(True), "gpu_mem_mib": st.just(60 * GIB)},
)
jobs = st.builds(lambda one, length: {**one, **length}, usual, lengths)
steps = st.one_of(
    jobs, jobs, jobs, odd, st.tuples(st.just("ends"), st.integers(0, 9)),
    st.tuples(st.just("passes"), st.sampled_from((30, 700, 4000))),
)  # fmt: skip
situations = st.lists(steps, min_size=10, max_size=24)
policies = st.sampled_from(list(PolicyName))


def a_world(policy: PolicyName, situation: list[Any]) -> World:
    world = World(*GPUS, rules=Rules(bypass_limit=2, cpu_jobs=2, policy=PolicyRules(name=policy, las_limits=(3600.0,))))
    for item in situation:
        if isinstance(item, dict):
            with suppress(GpuschedError):  # more than the machine has
                world.submit(**item)
        elif item[0] == "passes":
            world.passes(float(item[1]))
        elif running := sorted(world.running()):
            world.exits(running[item[1] % len(running)])
        set_going(world)
    return world


def waiting(world: World) -> list[Job]:
    return [job for job in world.engine.state.jobs.values() if job.state is JobState.PENDING]


class WhatIf:
    """A second engine in the same state, to which something happens."""

    def __init__(self, world: World) -> None:
        self.now, self.engine = world.now, revive(take(world.engine, world.now))

    def all_others_end(self, job: Job) -> Engine:
        """Everything that runs ends, until the job has started or nothing runs any more."""
        for _ in range(200):
            live = sorted(self.engine.view.live.values(), key=lambda a: a.key)
            if not live or job.id in self.engine.view.live:
                break
            self.engine.handle([AttemptExited(a.key, DONE, a.uuids) for a in live], self.now)
        return self.engine

    def cancelled(self, keys: list[str]) -> Engine:
        self.engine.handle([CancelRequested(tuple(keys), PEOPLE["root"])], self.now)
        return self.engine

    def released(self, job: Job) -> Engine:
        self.engine.handle([ReleaseRequested((job.key,), PEOPLE["root"])], self.now)
        return self.engine


@given(policies, situations)
@PROFILE
def test_a_second_engine_decides_nothing_that_the_first_has_not(policy: PolicyName, situation: list[Any]) -> None:
    world = a_world(policy, situation)
    other = WhatIf(world).engine
    other.state.look_at = world.now.boot  # have it decide again, though nothing has happened
    other.handle([Woke()], world.now)
    assert other.view.live.keys() == world.engine.view.live.keys()
    assert other.view.stopping == world.engine.view.stopping
    before, after = waiting(world), [other.state.jobs[job.id] for job in waiting(world)]
    assert [job.earmark for job in before] == [job.earmark for job in after]


@given(policies, situations)
@PROFILE
def test_what_is_named_as_the_reason_is_the_reason(policy: PolicyName, situation: list[Any]) -> None:
    world = a_world(policy, situation)
    view = world.engine.view
    for job in waiting(world):
        why = explain.reason(view, job, world.now)
        match why.word:
            case Word.RESOURCES:
                assert _nobody_competes(world, job)
                assert job.id in WhatIf(world).all_others_end(job).view.live, why
            case Word.PRIORITY:
                named = explain.ahead(view, job, world.now, most=1000)
                assert named, why
                other = WhatIf(world).cancelled([view.jobs[a.job_id].key for a in named])
                then = other.state.jobs[job.id]
                after = explain.reason(other.view, then, world.now).word if then.state is JobState.PENDING else None
                assert after is not Word.PRIORITY, f"{why}, and still so without them"
            case Word.HELD_USER:
                other = WhatIf(world).released(job)
                then = other.state.jobs[job.id]
                if then.state is JobState.PENDING:
                    assert explain.reason(other.view, then, world.now).word is not Word.HELD_USER
            case Word.ARRAY_LIMIT:
                family = [j for j in world.engine.state.elements(job.array.array_id) if j.state.live or j.earmark]
                assert len(family) >= job.array.limit
            case Word.CPU_JOBS:
                assert view.cpu_running >= view.rules.cpu_jobs
            case Word.PREEMPTING:
                assert job.earmark
            case _:
                raise AssertionError(f"a reason that this world does not have: {why}")


def _nobody_competes(world: World, job: Job) -> bool:
    """Who is ahead has its devices promised already, or could not be started whatever leaves."""
    ahead = [world.job(a.job_id) for a in explain.ahead(world.engine.view, job, world.now)]
    words = {explain.reason(world.engine.view, other, world.now).word for other in ahead}
    return words <= {Word.PREEMPTING, Word.ARRAY_LIMIT, Word.DEVICE_UNAVAILABLE, Word.FOREIGN_USE}


LONG_RUNNING = [{"gpus": 1, "expected": 50_000.0}] * 4 + [("passes", 8000)]


@given(st.sampled_from([name for name in PolicyName if name.preemptive]), st.lists(jobs, min_size=1, max_size=6))
@PROFILE
def test_whom_it_says_to_ask_at_the_next_tick_is_asked_then(policy: PolicyName, new: list[dict[str, Any]]) -> None:
    world = a_world(policy, [*LONG_RUNNING, ("passes", 30), *new])
    view = world.engine.view
    said = {
        job.id: [v.job_id for v in explain.victims(view, job, world.now) if "next tick" in v.text]
        for job in view.waiting()
    }
    first = {job_id: named for job_id, named in said.items() if named}
    event(f"{len(first)} jobs name somebody")
    if not first:
        return
    wait = 60.0 - world.now.boot % 60.0
    world.take(object)  # type: ignore[type-abstract]
    world.passes(wait)
    asked = set(world.asked_to_stop())
    assert asked, f"nobody was asked, and it was said: {first}"
    assert any(set(named) <= asked for named in first.values()), (first, asked)
