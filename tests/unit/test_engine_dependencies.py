"""Dependencies: each relation, all and any, arrays, singletons, circles, and what can never be met."""

from __future__ import annotations

import pytest
from builders import World

from gpusched.model.errors import Refused, UsageError
from gpusched.model.events import UpdateRequested
from gpusched.model.state import JobState
from gpusched.policy.explain import Word

WAITS, GOES, GONE = JobState.PENDING, JobState.STARTING, JobState.CANCELLED


@pytest.mark.parametrize(
    ("relation", "code", "becomes"),
    [
        ("afterok", 0, GOES), ("afterok", 3, GONE), ("afterany", 0, GOES), ("afterany", 3, GOES),
        ("afternotok", 3, GOES), ("afternotok", 0, GONE), ("after", 3, GOES),
    ],
)  # fmt: skip
def test_each_relation_is_met_by_the_end_it_names(relation, code, becomes):
    world = World(2)
    first = world.submit()
    second = world.submit(after=f"{relation}:{first}")
    assert world.states(second) == [WAITS]
    assert world.why(second).word is Word.DEPENDENCY
    world.exits(first, code=code)
    assert world.states(second) == [becomes]


def test_after_is_met_when_the_other_has_started():
    world = World(2)
    first = world.submit()
    second = world.submit(after=f"after:{first}")
    assert world.states(second) == [WAITS]
    world.started(first)
    assert world.states(second) == [GOES]


def test_after_is_met_when_the_other_is_cancelled_before_its_start():
    world = World(1)
    blocker, first = world.submit(), world.submit()
    second = world.submit(after=f"after:{first}")
    world.cancel(first)
    world.exits(blocker)
    assert world.states(second) == [GOES]


def test_all_clauses_must_hold_with_a_comma():
    world = World(3)
    a, b = world.submit(), world.submit()
    both = world.submit(after=f"afterok:{a},afterany:{b}")
    world.exits(a)
    assert world.states(both) == [WAITS]
    world.exits(b, code=1)
    assert world.states(both) == [GOES]


def test_one_clause_is_enough_with_a_question_mark():
    world = World(3)
    a, b = world.submit(), world.submit()
    either = world.submit(after=f"afterok:{a}?afterok:{b}")
    world.exits(a, code=1)
    assert world.states(either) == [WAITS]
    world.exits(b)
    assert world.states(either) == [GOES]


def test_a_dependency_on_an_array_waits_for_every_element():
    world = World(3)
    ids = world.submitted(array="0-2").job_ids
    after_all = world.submit(after=f"afterok:{ids[0]}")
    after_one = world.submit(after=f"afterok:{ids[0]}_2", gpus=0)
    world.exits(ids[0])
    world.exits(ids[2])
    assert world.states(after_all, after_one) == [WAITS, GOES]
    world.exits(ids[1])
    assert world.states(after_all) == [GOES]


def test_one_failed_element_is_enough_to_make_afterok_of_its_array_impossible():
    world = World(3)
    ids = world.submitted(array="0-2").job_ids
    after_all = world.submit(after=f"afterok:{ids[0]}")
    world.exits(ids[1], code=1)
    assert world.states(after_all) == [GONE]
    assert "can never be met" in world.job(after_all).ended_because


def test_a_dependency_that_can_never_be_met_takes_those_with_it_who_wait_for_the_waiting():
    world = World(1)
    first = world.submit()
    second = world.submit(after=f"afterok:{first}")
    third = world.submit(after=f"afterok:{second}")
    fourth = world.submit(after=f"afternotok:{third}")
    world.exits(first, code=1)
    assert world.states(second, third, fourth) == [GONE, GONE, GOES]


def test_a_job_that_is_kept_despite_its_bad_dependency_says_so_and_revives_when_the_other_is_requeued():
    world = World(1)
    first = world.submit()
    second = world.submit(after=f"afterok:{first}", cancel_on_bad_dependency=False)
    world.exits(first, code=1)
    assert world.states(second) == [WAITS]
    assert world.why(second).word is Word.DEPENDENCY_NEVER
    world.requeue(first)
    assert world.why(second).word is Word.DEPENDENCY
    world.exits(first)
    assert world.states(second) == [GOES]


def test_a_submit_that_depends_on_what_has_failed_already_is_answered_with_its_end():
    world = World(1)
    first = world.submit()
    world.exits(first, code=1)
    reply = world.submitted(after=f"afterok:{first}", recalled=(world.job(first),))
    assert world.states(*reply.job_ids) == [GONE]
    assert "can never be met" in reply.note


def test_a_dependency_on_an_ended_job_that_only_the_store_knows_is_met():
    world = World(1)
    first = world.submit()
    world.exits(first)
    for _ in range(8):  # until the engine has let go of it
        world.exits(world.submit())
    assert first not in world.engine.state.jobs
    with pytest.raises(UsageError, match="no such job"):
        world.submit(after=f"afterok:{first}", recalled=())
    assert world.states(world.submit(after=f"afterok:{first}", recalled=(world.job(first),))) == [GOES]


def test_singletons_of_one_name_and_user_run_one_after_the_other():
    world = World(4)
    first, second, third = (world.submit(name="tune", after="singleton") for _ in range(3))
    bobs = world.submit(by="bob", name="tune", after="singleton")
    assert world.states(first, second, third, bobs) == [GOES, WAITS, WAITS, GOES]
    assert "'tune'" in world.why(second).text
    world.exits(first, code=1)
    assert world.states(second, third) == [GOES, WAITS]


def test_a_singleton_goes_when_the_job_before_it_takes_another_name():
    world = World(2)
    first = world.submit(name="tune")
    second = world.submit(name="tune", after="singleton")
    world.update(first, name="other")
    assert world.states(second) == [GOES]


def test_a_singleton_that_takes_a_name_in_use_waits_for_it():
    world = World(3)
    world.submit(name="tune")
    held = world.submit(name="free", after="singleton", hold=True)
    world.update(held, name="tune")
    world.release(held)
    assert world.why(held).word is Word.DEPENDENCY


def test_dependencies_on_unknown_jobs_and_on_oneself_are_refused():
    world = World(1)
    job = world.submit()
    waiting = world.submit()
    with pytest.raises(UsageError, match="job 99: no such job"):
        world.submit(after="afterok:99")
    with pytest.raises(UsageError, match="itself"):
        world.update(waiting, dependency=f"afterok:{waiting}")
    assert world.states(job, waiting) == [GOES, WAITS]


def test_circles_of_dependencies_are_refused_and_nothing_changes():
    world = World(1)
    world.submit()
    a = world.submit()
    b = world.submit(after=f"afterok:{a}")
    c = world.submit(after=f"afterok:{b}")
    with pytest.raises(UsageError, match="wait for itself"):
        world.update(a, dependency=f"afterany:{c}")
    assert world.job(a).spec.dependency is None
    assert world.why(a).word is Word.RESOURCES


def test_a_circle_through_a_singletons_name_is_refused_too():
    world = World(1)
    world.submit()
    first = world.submit(name="tune")
    later = world.submit(name="tune", after="singleton")
    with pytest.raises(UsageError, match="wait for itself"):
        world.update(first, dependency=f"afterok:{later}")
    other = world.submit(name="other", after="singleton")
    blocked = world.submit(name="tune", after=f"afterok:{other}")
    with pytest.raises(UsageError, match="wait for itself"):
        world.update(first, dependency=f"afterok:{blocked}", name="other")


def test_a_dependency_can_be_changed_and_taken_away_while_the_job_waits():
    world = World(3)
    a, b = world.submit(), world.submit()
    job = world.submit(after=f"afterok:{a}")
    world.update(job, dependency=f"afterok:{b}")
    world.exits(a)
    assert world.states(job) == [WAITS]
    world.update(job, dependency="")
    assert world.states(job) == [GOES]


def test_a_change_to_a_dependency_that_can_never_be_met_is_refused():
    world = World(1)
    failed = world.submit()
    world.submit()
    job = world.submit()
    world.exits(failed, code=1)
    (answer,) = world.ask(UpdateRequested, job, dependency=f"afterok:{failed}")
    assert isinstance(answer.error, Refused)
    assert world.job(job).spec.dependency is None


def test_whoever_waits_is_found_again_after_a_crash():
    world = World(3)
    ids = world.submitted(array="0-1").job_ids
    job = world.submit(after=f"afterok:{ids[0]}")
    world.exits(ids[0])
    world.crash()
    assert world.states(job) == [WAITS]
    world.exits(ids[1])
    assert world.states(job) == [GOES]
