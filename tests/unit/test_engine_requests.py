"""What people may ask: of whom, in which state, with which answer."""

from __future__ import annotations

import pytest
from builders import World, gpu

from gpusched.model.errors import NotAllowed, NotFound, Refused, UsageError
from gpusched.model.events import (
    CancelRequested,
    CheckpointRequested,
    HoldRequested,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    UpdateRequested,
)
from gpusched.model.job import HoldKind
from gpusched.model.rules import Partition, Rules
from gpusched.model.state import JobState
from gpusched.policy.explain import Word

VERBS = (
    (CancelRequested, {}), (HoldRequested, {}), (ReleaseRequested, {}), (RequeueRequested, {}), (PreemptRequested, {}),
    (CheckpointRequested, {}), (UpdateRequested, {"comment": "mine"}),
)  # fmt: skip
PREPARED = {  # how a job gets where the verb can be carried out
    CancelRequested: "running", HoldRequested: "waiting", ReleaseRequested: "held", RequeueRequested: "running",
    PreemptRequested: "running", CheckpointRequested: "running", UpdateRequested: "waiting",
}  # fmt: skip


def a_job(how: str) -> tuple[World, int]:
    """A world with one job of ann's that is `running` (and watches), `waiting` or `held`."""
    world = World(1)
    if how != "running":
        world.submit("bob")
    job = world.submit("ann", hold=how == "held")
    if how == "running":
        world.started(job)
        world.watches(job)
    return world, job


@pytest.mark.parametrize("who", ["ann", "bob", "root"])
@pytest.mark.parametrize(("verb", "fields"), VERBS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_job_obeys_its_owner_and_the_administrator_and_nobody_else(verb, fields, who):
    world, job = a_job(PREPARED[verb])
    before = world.job(job)
    (answer,) = world.ask(verb, job, by=who, **fields)
    if who == "bob":
        assert isinstance(answer.error, NotAllowed)
        assert "belongs to ann" in answer.error.message
        assert world.job(job) == before
        assert world.asked_to_stop() == []
    else:
        assert answer.error is None
        assert answer.done


@pytest.mark.parametrize(("verb", "fields"), VERBS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("key", ["77", "77_3", "1_0", "nonsense", "", "_", "1_x", "²", "9" * 40])
def test_a_request_about_a_job_that_is_not_there_says_so(verb, fields, key):
    world, _ = a_job("waiting")
    (answer,) = world.ask(verb, key, by="root", **fields)
    assert isinstance(answer.error, NotFound)


def test_each_job_of_a_request_gets_its_own_answer():
    world = World(1)
    mine, others = world.submit("ann"), world.submit("bob")
    answers = world.ask(CancelRequested, mine, others, 99, by="ann")
    assert [type(a.error) for a in answers] == [type(None), NotAllowed, NotFound]


# ---- hold and release ---------------------------------------------------------------------------------------------


def test_a_held_job_waits_until_it_is_released():
    world = World(1)
    job = world.submit(hold=True)
    assert world.why(job).word is Word.HELD_USER
    world.release(job)
    assert world.states(job) == [JobState.STARTING]
    with pytest.raises(Refused, match="only waiting jobs"):
        world.hold(job)
    with pytest.raises(Refused, match="not held"):
        world.release(job)


def test_only_an_administrator_releases_what_an_administrator_holds():
    world, job = a_job("waiting")
    world.hold(job, by="root")
    assert world.why(job).word is Word.HELD_ADMIN
    with pytest.raises(NotAllowed, match="administrator"):
        world.release(job)
    assert world.release(job, by="root") == "released"


def test_an_administrators_hold_takes_the_place_of_the_owners():
    world, job = a_job("held")
    world.hold(job, by="root")
    assert world.job(job).hold.kind is HoldKind.ADMIN
    assert world.hold(job) == "held already"
    assert world.job(job).hold.kind is HoldKind.ADMIN


def test_a_held_preemptor_gives_up_the_devices_it_was_promised():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    other = world.submit(qos="high")
    world.hold(high)
    assert (world.job(high).earmark, world.job(other).earmark) == ((), ("GPU-0",))
    world.exits(low, code=85)
    assert world.running() == {other}


# ---- update -------------------------------------------------------------------------------------------------------


def test_a_waiting_job_can_be_changed_so_that_it_fits():
    world = World(2)
    world.submit()
    job = world.submit(gpus=2)
    assert "gpus = 1" in world.update(job, gpus=1)
    assert world.states(job) == [JobState.STARTING]


def test_a_change_is_told_in_the_words_of_its_user():
    world = World(1)
    job = world.submit(hold=True)
    said = world.update(job, time_limit=180.0, begin=0.0, gpu_mem_mib=3072, dependency="", comment="hi")
    wanted = {"time_limit = 3:00", "no begin time", "gpu_mem = 3G", "no dependency", "comment = hi"}
    assert set(said.removeprefix("changed: ").split(", ")) == wanted
    assert world.update(job, time_limit=0.0) == "changed: no time_limit"


def test_a_change_of_level_changes_the_order():
    world = World(1)
    running, first, second = world.submit(qos="high"), world.submit(), world.submit()
    world.update(second, qos="high")
    world.exits(running)
    assert world.running() == {second}
    assert first not in world.running()


def test_what_a_submit_would_refuse_an_update_refuses_too():
    partitions = {"default": Partition("default"), "short": Partition("short", max_time=600.0)}
    world = World(1, rules=Rules(partitions=partitions))
    world.submit()
    job = world.submit()
    before = world.job(job)
    for wrong in (
        {"gpus": 9}, {"gpus": -1}, {"gpu_mem_mib": 999_999}, {"gpu_type": "h100"}, {"qos": "urgent"},
        {"partition": "elsewhere"}, {"dependency": "afterok:99"}, {"dependency": "soon:1"}, {"time_limit": -5.0},
        {"partition": "short", "time_limit": 900.0}, {},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            world.update(job, **wrong)
        assert world.job(job) == before


def test_a_limit_that_is_taken_away_becomes_that_of_the_partition():
    world = World(1, rules=Rules(partitions={"default": Partition("default", max_time=600.0)}))
    job = world.submit(time_limit=60.0)
    world.update(job, time_limit=0.0)
    assert world.job(job).spec.time_limit == 600.0


def test_a_running_job_can_be_changed_only_in_what_does_not_touch_its_devices():
    world, job = a_job("running")
    world.update(job, comment="look at me", name="new", time_limit=900.0)
    with pytest.raises(Refused, match="only while it waits"):
        world.update(job, gpus=2)
    world.exits(job)
    with pytest.raises(Refused, match="ended already"):
        world.update(job, comment="too late")


def test_a_preemptor_that_asks_for_something_else_is_planned_anew():
    world = World(gpu(0), gpu(1, gib=80))
    world.submit(qos="low", gpu_mem_mib=50_000)
    small = world.submit(qos="low")
    high = world.submit(qos="high", gpu_mem_mib=50_000)
    assert world.job(high).earmark == ("GPU-1",)
    world.update(high, gpu_mem_mib=1_000)
    assert world.job(high).earmark
    world.exits(1, code=85)
    assert world.where(high) == (1,)
    assert world.states(small) == [JobState.STARTING]


def test_the_times_of_a_cron_job_cannot_be_changed_into_nothing():
    world = World(1)
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60)
    with pytest.raises(Refused, match="--cron"):
        world.update(template, begin=0.0)


def test_a_later_begin_time_gives_up_promised_devices():
    world = World(1)
    low, high = world.submit(qos="low"), world.submit(qos="high")
    world.update(high, begin=world.now.wall + 50)
    assert world.job(high).earmark == ()
    world.exits(low, code=85)
    assert world.running() == {low}
    world.passes(51)
    assert world.job(high).earmark == ("GPU-0",)


# ---- requeue ------------------------------------------------------------------------------------------------------


def test_an_ended_job_runs_again_as_its_next_attempt():
    world = World(1)
    job = world.submit()
    world.exits(job, code=3)
    assert "waits again" in world.requeue(job)
    assert (world.states(job), world.job(job).attempt, world.job(job).ended_at) == ([JobState.STARTING], 2, None)


def test_an_ended_job_that_the_engine_has_let_go_of_is_taken_from_the_store():
    world = World(1)
    job = world.submit()
    world.exits(job, code=3)
    for _ in range(8):
        world.exits(world.submit())
    assert job not in world.engine.state.jobs
    world.requeue(job)
    assert world.running() == {job}


def test_a_running_job_saves_and_waits_again():
    world = World(1)
    job, other = world.submit(), world.submit()
    world.requeue(job)
    assert world.asked_to_stop() == [job]
    with pytest.raises(Refused, match="leaving already"):
        world.requeue(job)
    world.exits(job, code=85)
    assert world.running() == {job}  # it keeps its place: first come, first served
    with pytest.raises(Refused, match="waiting already"):
        world.requeue(other)


def test_of_an_array_only_what_a_request_can_apply_to_is_meant():
    world = World(1)
    first, second, third = world.submitted(array="0-2").job_ids
    world.exits(first, code=1)
    world.requeue(f"{first}_0")
    assert world.states(first, second, third) == [JobState.PENDING, JobState.STARTING, JobState.PENDING]
    answers = world.ask(RequeueRequested, str(first))
    assert [a.key for a in answers] == ["1_1"]
    world.cancel(str(first))
    assert world.states(first, third) == [JobState.CANCELLED] * 2
    world.exits(second)
    (answer,) = world.ask(CancelRequested, str(first))
    assert "ended already" in answer.error.message
    assert world.requeue(f"{first}_2")
    assert world.states(third) == [JobState.STARTING]


def test_only_a_running_job_can_give_its_devices_back():
    world, job = a_job("waiting")
    with pytest.raises(Refused, match="no device to give back"):
        world.preempt(job)


def test_a_submit_that_the_machine_can_never_run_is_refused_with_what_there_is():
    world = World(gpu(0), gpu(1), gpu(2, "NVIDIA H100 80GB HBM3", 80))
    with pytest.raises(UsageError) as caught:
        world.submit(gpus=2, gpu_type="h100")
    assert "2 devices of type 'h100'" in caught.value.message
    assert "1 × NVIDIA H100 80GB HBM3 with 80G, 2 × NVIDIA RTX 4090 with 24G" in caught.value.hint
    for wrong in ({"gpus": 4}, {"gpu_mem_mib": 81 * 1024}, {"shared": True}, {"qos": "urgent"}, {"gpus": -1}):
        with pytest.raises(UsageError):
            world.submit(**wrong)
    assert world.submit() == 1
