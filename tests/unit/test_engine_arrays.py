"""Arrays: elements wait as one row until something concerns them alone, and nobody can tell by what they do."""

from __future__ import annotations

import pytest
from builders import World

from gpusched.model.errors import NotAllowed, NotFound, UsageError
from gpusched.model.events import CancelRequested, HoldRequested, ReleaseRequested, RequeueRequested, UpdateRequested
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState

MANY = "0-99999"


def rows(world: World, array: int) -> list[str]:
    return [job.key for job in world.engine.state.elements(array)]


def test_a_hundred_thousand_elements_are_one_row_until_they_start() -> None:
    world = World(2)
    reply = world.submitted(array=MANY)
    assert reply.job_ids == range(1, 100_001)
    assert rows(world, 1) == ["1_0", "1_1", "1_[2-99999]"]
    world.exits(2)
    assert world.where(3) == (1,) and rows(world, 1)[-1] == "1_[3-99999]"
    assert world.submit() == 100_001, "ids are reserved"


def test_the_commit_of_a_start_has_the_element_and_the_rest() -> None:
    world = World(1)
    world.submit(array=MANY)
    step = world.decide(world.end(world.key(1), _done()))
    assert sorted(job.key for job in step.changes.jobs) == ["1_0", "1_1", "1_[2-99999]"]


def _done():
    from gpusched.model.state import Outcome, OutcomeKind

    return Outcome(OutcomeKind.EXITED, code=0)


def test_indices_need_not_follow_each_other() -> None:
    world = World(2)
    world.submit(array="7,3-9:3,20-21%1")
    assert rows(world, 1) == ["1_3", "1_[6-7,9,20-21%1]"]
    world.exits(1)
    assert (world.job("1_6").id, world.job(2).array.index, world.job("1_21").id) == (2, 6, 6)


def test_a_long_list_of_single_numbers_begins_as_several_rows() -> None:
    world = World(1)
    indices = ",".join(str(number * number) for number in range(200))
    reply = world.submitted(array=indices)
    assert len(rows(world, 1)) == 5  # the first has started
    world.ask(CancelRequested, "1_[1-10000]")
    assert {world.job(job_id).state for job_id in reply.job_ids[1:101]} == {JobState.CANCELLED}
    assert {world.job(job_id).state for job_id in reply.job_ids[101:]} == {JobState.PENDING}


def test_an_element_that_is_asked_about_leaves_its_row_and_the_rest_stays_together() -> None:
    world = World(1)
    world.submit(array="0-9")
    world.hold("1_5")
    assert rows(world, 1) == ["1_0", "1_[1-4,6-9]", "1_5"]
    assert world.job("1_5").hold is not None and world.job("1_6").hold is None
    world.cancel("1_[7-8]", 4)  # elements, and one by its job id
    assert rows(world, 1) == ["1_0", "1_[1-2,4,6,9]", "1_3", "1_5", "1_[7-8]"]


def test_the_first_element_of_a_row_can_be_meant_alone() -> None:
    world = World(1)
    world.submit(array="0-9")
    world.cancel(2)
    assert rows(world, 1) == ["1_0", "1_1", "1_[2-9]"]
    assert world.states(2, 3) == [JobState.CANCELLED, JobState.PENDING]


def test_a_request_that_is_refused_takes_no_row_apart() -> None:
    world = World(1)
    world.submit(array="0-9")
    before = rows(world, 1)
    with pytest.raises(NotAllowed, match="1_5 belongs to ann"):
        world.cancel("1_5", by="bob")
    (answer,) = world.ask(ReleaseRequested, "1_[5-6]")
    assert answer.key == "1_[5-6]" and answer.error is not None
    assert rows(world, 1) == before


def test_of_a_list_what_is_not_there_is_named_and_the_rest_is_done() -> None:
    world = World(1)
    world.submit(array="0-9:3")
    answers = {answer.key: answer.error for answer in world.ask(HoldRequested, "1_[2-7]")}
    assert answers.keys() == {"1_[2,4-5,7]", "1_[3,6]"}
    assert isinstance(answers["1_[2,4-5,7]"], NotFound) and answers["1_[3,6]"] is None


def test_all_elements_that_wait_are_held_changed_and_cancelled_as_one_row() -> None:
    world = World(1)
    world.submit(array=MANY)
    for kind in (HoldRequested, ReleaseRequested):
        assert [answer.key for answer in world.ask(kind, "1_[1-99999]")] == ["1_[1-99999]"]
    world.ask(UpdateRequested, 1, comment="all of them")
    assert {world.job(job_id).spec.comment for job_id in (1, 2, 100_000)} == {"all of them"}
    assert [answer.key for answer in world.ask(CancelRequested, 1)] == ["1_0", "1_[1-99999]"]
    assert world.job("1_77").state is JobState.CANCELLED
    world.exits(1)
    assert [answer.key for answer in world.ask(RequeueRequested, "1_77")] == ["1_77"]
    assert world.where(78) == (0,)
    assert world.job("1_78").state is JobState.CANCELLED


def test_an_element_that_gave_its_devices_back_goes_before_those_that_never_ran() -> None:
    world = World(1)
    world.submit(array="0-9", qos="low")
    world.started(1)
    high = world.submit(qos="high")
    world.exits(1, code=85, saved_step=3)
    assert world.where(high) == (0,)
    assert rows(world, 1) == ["1_0", "1_[1-9]"]
    world.exits(high)
    assert world.where(1) == (0,)


def test_only_the_first_element_is_promised_the_devices_of_its_victim() -> None:
    world = World(1)
    world.submit(qos="low")
    array = world.submit(array="0-9", qos="high")
    assert rows(world, array) == ["2_0", "2_[1-9]"]
    assert world.job(array).earmark == ("GPU-0",)


def test_what_was_told_of_the_row_was_told_of_each_element() -> None:
    world = World(1)
    world.submit(array="0-9", hold=True)
    world.release(1)
    world.ask(UpdateRequested, 1, comment="x")
    world.exits(1)
    assert world.kinds(2) == ["submitted", "released", "updated", "starting"]
    assert world.kinds(3) == ["submitted", "released", "updated"]
    world.hold("1_9")
    assert world.kinds(10) == ["submitted", "released", "updated", "held"]
    assert "held" not in world.kinds(3)


def test_elements_that_have_ended_are_let_go_while_others_run_and_can_be_asked_for() -> None:
    world = World(1)
    world.submit(array="0-19")
    for job_id in range(1, 15):
        world.exits(job_id, code=job_id % 2)
    array = world.engine.state.arrays.known[1]
    assert array.let_go and (array.completed, array.failed, array.unfinished) == (7, 7, 6)
    waits = world.submit(after="afterok:1_3")
    assert world.job(waits).dependency_met
    world.cancel(waits)
    assert world.requeue("1_0") == "waits again"
    assert world.states(1, 2) == [JobState.PENDING, JobState.COMPLETED]
    world.cancel(1)
    world.exits(15)
    assert not world.engine.state.arrays.known[1].unfinished
    world.engine.look_at = 0
    world.exits(world.submit())
    assert 1 not in world.engine.state.arrays.known, "nobody needs the array any more"
    world.requeue("1_7")
    assert world.engine.state.arrays.known[1].unfinished == 1


def test_a_restart_gives_the_same_rows() -> None:
    world = World(2)
    world.submit(array="0-99%2", after="singleton")
    world.submit(array="0-99%1")
    world.hold("101_[50-60]")
    before = repr(world.engine.state.arrays), world.engine.state.told
    world.crash()
    assert (repr(world.engine.state.arrays), world.engine.state.told) == before


def test_elements_with_one_name_run_one_after_the_other_and_the_rest_is_one_row() -> None:
    world = World(4)
    world.submit(array=MANY, after="singleton")
    assert rows(world, 1) == ["1_0", "1_[1-99999]"]
    world.exits(1)
    assert rows(world, 1)[-2:] == ["1_1", "1_[2-99999]"] and world.where(2)


@pytest.mark.parametrize("policy", [PolicyName.LAS, PolicyName.SRTF])
def test_policies_that_count_all_devices_out_see_as_many_elements_as_could_run(policy: PolicyName) -> None:
    world = World(3, rules=Rules(policy=PolicyRules(name=policy, min_run=0.0)))
    world.submit(array=MANY)
    assert world.running() == {1, 2, 3}
    world.exits(2)
    assert world.running() == {1, 3, 4}
    assert len(rows(world, 1)) <= 2 * 3 + 1, "those that run, as many that could, and the rest"


# ---- dependencies ----------------------------------------------------------------------------------------------


def test_an_array_that_waits_for_an_array_is_one_row_and_learns_of_its_end() -> None:
    world = World(2)
    first = world.submit(array="0-3")
    second = world.submit(array=MANY, after=f"afterok:{first}")
    for job_id in range(1, 4):
        world.exits(job_id)
        assert rows(world, second) == [f"5_[{MANY}]"]
    world.exits(4)
    assert world.running() == {5, 6}


def test_who_waits_for_an_element_learns_what_became_of_its_row() -> None:
    world = World(1)
    array = world.submit(array="0-9")
    ends, works = world.submit(after="afterany:1_7"), world.submit(after="afterok:9")
    assert str(world.job(works).spec.dependency) == "afterok:1_8"
    world.cancel(array)
    assert world.job(ends).dependency_met
    assert world.job(works).state is JobState.CANCELLED


def test_element_by_element_each_waits_for_its_like() -> None:
    world = World(4)
    first = world.submit(array="1-9:4%3")
    second = world.submit(array="1-9:4", after=f"aftercorr:{first}", gpus=0)
    assert rows(world, second) == ["4_[1,5,9]"] or rows(world, second) == ["4_[1-9:4]"]
    world.exits(2)
    assert world.running() == {1, 3, 5}
    world.exits(1, code=1)
    assert world.job("4_1").state is JobState.CANCELLED and "aftercorr:1" in world.job("4_1").ended_because
    world.exits(3)
    assert world.running() == {5, 6}


def test_a_whole_array_of_likes_is_decided_as_rows_not_one_by_one() -> None:
    world = World(1)
    world.submit(array=MANY)
    second = world.submit(array=MANY, after="aftercorr:1", cancel_on_bad_dependency=False)
    world.cancel("1_[50000-99999]")
    assert rows(world, second) == ["100001_[0-49999]", "100001_[50000-99999]"]
    assert world.job("100001_50000").dependency_failed and not world.job("100001_49999").dependency_failed
    world.requeue("1_60000")
    assert not world.job("100001_60000").dependency_failed


def test_likes_that_have_ended_before_the_submit_count() -> None:
    world = World(1)
    world.submit(array="0-9")
    for job_id in range(1, 7):
        world.exits(job_id, code=job_id == 4)
    second = world.submit(array="0-9", after="aftercorr:1", gpus=0)
    assert world.running() >= {second, second + 1, second + 2, second + 4, second + 5}
    assert world.job(second + 3).state is JobState.CANCELLED
    assert rows(world, second)[-1] == "11_[6-9]"


@pytest.mark.parametrize(
    ("array", "after", "sentence"),
    [
        (None, "aftercorr:1", "this job is no array"),
        ("0-3", "aftercorr:5", "job 5 is no array"),
        ("0-9", "aftercorr:1", "has no element 4-9"),
    ],
)
def test_likes_that_are_not_there_are_refused(array: str | None, after: str, sentence: str) -> None:
    world = World(1)
    world.submit(array="0-3")
    world.submit()
    with pytest.raises(UsageError, match=sentence):
        world.submit(array=array, after=after)


def test_one_element_alone_cannot_be_the_array_of_likes() -> None:
    with pytest.raises(UsageError, match="aftercorr is about whole arrays"):
        World(1).submit(array="0-3", after="aftercorr:1_2")
