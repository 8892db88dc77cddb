"""Under every policy, whatever is submitted, reserved and crashed: reservations hold, and nobody starves."""

from __future__ import annotations

from typing import Any

import pytest
from builders import GIB, World
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import PROFILE
from reserving import HOUR, reserve, unreserve

from gpusched.model.actions import Ask, Asked, Kill, Launch
from gpusched.model.errors import GpuschedError
from gpusched.model.job import Job
from gpusched.model.policy import Placement, PolicyName, PolicyRules
from gpusched.model.reservation import Repeat, Reservation
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, StopKind

DEVICES = 3
NAMES = ("one", "two")
hours = st.sampled_from((0.1, 0.5, 1.0, 2.0, 5.0)).map(HOUR.__mul__)
jobs = st.fixed_dictionaries(
    {"by": st.sampled_from(("ann", "bob")), "gpus": st.integers(0, DEVICES), "grace": st.sampled_from((0.0, 60.0))},
    optional={
        "time_limit": hours, "expected": hours, "qos": st.sampled_from(("low", "high")),
        "requeue": st.booleans(), "max_requeues": st.integers(0, 1),
    },
)  # fmt: skip
sharing_jobs = st.builds(
    lambda job, gib: {**job, "gpus": 1, "shared": True, "gpu_mem_mib": gib * GIB}, jobs, st.integers(4, 20)
)
own_jobs = st.builds(
    lambda job, name, gpus: {**job, "by": "ann", "reservation": name, "gpus": gpus},
    jobs, st.sampled_from(NAMES), st.integers(0, 2),
)  # fmt: skip
reservations = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES), "start_in": st.sampled_from((0.0, 0.1, 1.0, 3.0)).map(HOUR.__mul__),
        "duration": hours, "users": st.sampled_from(("ann", "ann,bob", "")),
    },
    optional={"repeat": st.sampled_from(Repeat)},
)  # fmt: skip
devices = st.one_of(
    st.sampled_from(("0", "1,2", "0,1,2")).map(lambda d: {"devices": d}),
    st.integers(1, DEVICES).map(lambda n: {"count": n}),
)
reserving = st.tuples(st.just("reserve"), st.builds(lambda a, b: {**a, **b}, reservations, devices))
steps = st.one_of(
    st.tuples(st.just("submit"), jobs),
    st.tuples(st.just("submit"), own_jobs),
    st.tuples(st.just("submit"), sharing_jobs),
    reserving,
    st.tuples(st.just("unreserve"), st.sampled_from(NAMES)),
    st.tuples(st.just("pass"), hours),
    st.tuples(st.just("starts"), st.integers(0, 9)),
    st.tuples(st.just("ends"), st.integers(0, 9)),
    st.tuples(st.just("crash"), st.none()),
    st.tuples(st.just("away"), hours),  # the daemon is away so long
)
stories = st.builds(
    lambda first, rest: [*first, *rest],
    st.lists(reserving, min_size=1, max_size=2), st.lists(steps, min_size=4, max_size=25),
)  # fmt: skip


class Watched(World):
    """A world that looks at every launch and every request to stop, at the moment when it is decided."""

    def decide(self, *events: Any) -> Any:
        step = super().decide(*events)
        reserved = self.engine.view.reservations.values()
        for action in step.actions:
            if isinstance(action, Launch):
                for reservation in reserved:
                    if {share.uuid for share in action.devices} & set(reservation.devices):
                        self._may_start(action.job, reservation)
            if isinstance(action, Ask) and action.what is Asked.STOP:
                self._may_be_asked(self.job(action.attempt.job_id))
        for reservation in reserved:
            if reservation.start <= self.now.wall < reservation.end:
                self._only_its_own(reservation)
        return step

    def _may_start(self, job: Job, reservation: Reservation) -> None:
        if belongs(job, reservation):
            return
        left = reservation.start - self.now.wall
        assert left > 0, f"{job.key} starts on a device of {reservation.name}, which is active"
        spec, limit = job.spec, job.spec.time_limit
        told = min((seconds for seconds in (spec.expected, limit) if seconds is not None), default=None)
        if not spec.requeue or (spec.max_requeues is not None and job.restarts >= spec.max_requeues):
            assert limit is not None and limit <= left, f"{job.key} would be ended by {reservation.name}"
        elif told is not None and reservation.repeat is None and job.ran == 0.0:
            assert told <= left, f"{job.key} is too long to start before {reservation.name}"

    def _may_be_asked(self, job: Job) -> None:
        if job.stop is not None and job.stop.kind is StopKind.RESERVATION:
            its = self.engine.view.reservations.get(job.stop.reservation)  # over, if it is asked again after a crash
            assert its is None or not belongs(job, its), job

    def _only_its_own(self, reservation: Reservation) -> None:
        for job_id, attempt in self.engine.view.live.items():
            job = self.job(job_id)
            if set(attempt.uuids) & set(reservation.devices) and not belongs(job, reservation):
                assert job.state is JobState.STOPPING, f"{job.key} stays on a device of {reservation.name}"
                assert job.stop is not None and (job.stop.kills or job.stop.deadline <= self.now.boot + 600), job.stop


def belongs(job: Job, reservation: Reservation) -> bool:
    return job.spec.request.reservation == reservation.name and job.owner.user in reservation.users


def take(world: World, step: tuple[str, Any]) -> None:
    kind, what = step
    live = sorted(world.running())
    try:
        match kind:
            case "submit":
                world.submit(**what)
            case "reserve":
                reserve(world, **what)
            case "unreserve":
                unreserve(world, what)
            case "pass":
                world.passes(what)
            case "starts" if live:
                world.started(live[what % len(live)])
            case "ends" if live:
                job = live[what % len(live)]
                world.exits(job, code=85 if world.job(job).state is JobState.STOPPING else 0)
            case "crash":
                world.crash()
            case "away":
                world.now = world.now.later(what)
                world.crash()
    except GpuschedError:
        pass  # refused, which other tests look at
    for killed in {action.attempt for action in world.take(Kill)}:
        if world.processes[killed].alive:
            world.exits(killed.job_id, signal=9, attempt=killed.number)


RULES = [
    *(PolicyRules(name, min_run=300.0) for name in PolicyName),
    PolicyRules(PolicyName.LAS, calm=False),
    PolicyRules(PolicyName.SRTF, calm=False, migrate=True, placement=Placement.PACK),
]


@pytest.mark.parametrize("rules", RULES, ids=[f"{r.name}{'' if r.calm else '-by-count'}" for r in RULES])
@given(story=stories)
@settings(PROFILE, max_examples=50)
def test_reservations_hold_and_everything_ends(rules: PolicyRules, story: list[tuple[str, Any]]) -> None:
    world = Watched(DEVICES, rules=Rules(policy=rules, cpu_jobs=2))
    for step in story:
        take(world, step)
    for _ in range(300):  # no more arrivals
        open_jobs = [job for job in world.engine.state.jobs.values() if not job.state.final]
        if all(never(world, job) for job in open_jobs):
            break
        for job_id in sorted(world.running()):
            if job_id in world.running():
                world.started(job_id)
                world.exits(job_id, code=85 if world.job(job_id).state is JobState.STOPPING else 0)
        next_window = 0.0 if world.wake_wall is None or world.running() else world.wake_wall - world.now.wall
        take(world, ("pass", max(HOUR / 2, next_window)))
    else:
        left = {job.key: world.why(job.id) for job in world.engine.state.jobs.values() if not job.state.final}
        raise AssertionError(f"these never come to their end: {left}")


def never(world: World, job: Job) -> bool:
    """A repeating reservation may keep out for ever who may not be asked to leave; and maintenance its own jobs."""
    repeats = [r for r in world.engine.view.reservations.values() if r.repeat is not None]
    return bool(repeats) and (not job.spec.requeue or job.spec.max_requeues is not None)
