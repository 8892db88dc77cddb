"""Who goes first: levels, first come first served, arrays, going past one another, yielding, begin times."""

from __future__ import annotations

import pytest
from builders import World

from gpusched.model.array import parse_array
from gpusched.model.errors import UsageError
from gpusched.model.events import CronFired
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.explain import Word, victims


def test_within_a_level_first_come_is_first_served():
    world = World(1)
    jobs = [world.submit() for _ in range(4)]
    for expected in jobs:
        assert world.running() == {expected}
        world.exits(expected)
    assert world.states(*jobs) == [JobState.COMPLETED] * 4


def test_a_higher_level_goes_first_and_a_lower_one_last():
    world = World(1)
    first = world.submit(qos="high")
    low, normal, high = (world.submit(qos=qos) for qos in ("low", "normal", "high"))
    for ended, expected in ((first, high), (high, normal), (normal, low)):
        world.exits(ended)
        assert world.running() == {expected}


def test_a_later_smaller_job_runs_on_devices_that_the_head_cannot_use_behind_one_that_runs_for_long():
    world = World(2)
    long = world.submit()
    world.started(long)
    big, small = world.submit(gpus=2), world.submit()
    assert world.where(small) == ()
    kept = f"free devices are being kept for job {big}"
    assert world.why(small).text == f"{kept}: nobody knows when those end that it waits for"
    assert world.why(small).next == "that job starts, or they run for another 10:00"
    world.passes(599)
    assert world.where(small) == ()
    world.passes(1)
    assert world.where(small) == (1,)
    assert world.why(big).word is Word.RESOURCES


def test_without_a_hold_a_later_smaller_job_runs_at_once_and_is_counted():
    world = World(2, rules=Rules(policy=PolicyRules(hold=0.0)))
    world.started(world.submit())
    big, small = world.submit(gpus=2), world.submit()
    assert world.where(small) == (1,)
    assert world.job(big).bypassed == 1


def test_a_job_with_a_time_limit_goes_past_as_soon_as_those_that_run_have_run_for_as_long():
    world = World(2)
    world.started(world.submit())
    world.submit(gpus=2)
    small = world.submit(time_limit=60.0)
    world.passes(59)
    assert world.where(small) == ()
    world.passes(1)
    assert world.where(small) == (1,)


def test_after_the_bypass_limit_free_devices_are_kept_for_the_job_that_waits():
    world = World(2, rules=Rules(bypass_limit=2))
    keeps_one_busy = world.submit()
    world.started(keeps_one_busy)
    world.passes(600)
    big = world.submit(gpus=2)
    for _ in range(2):
        world.exits(world.submit())
    late = world.submit()
    assert world.job(big).bypassed == 2
    assert world.states(late) == [JobState.PENDING]
    assert world.why(late).word is Word.PRIORITY
    assert world.why(late).text == "free devices are being kept for job 2: 2 later jobs have gone past it"
    world.exits(keeps_one_busy)
    assert world.where(big) == (0, 1)


def test_a_plan_to_preempt_goes_past_the_waiting_job_only_as_often_as_a_start():
    world = World(2, rules=Rules(bypass_limit=1))
    running, low = world.submit(qos="normal"), world.submit(qos="low")
    world.started(running, low)
    big = world.submit(gpus=2)
    world.submit()
    assert world.asked_to_stop() == [], "what runs is young and may end soon"
    world.passes(600)
    first = 4  # asks the low job to leave, past the big one
    assert world.asked_to_stop() == [low]
    world.exits(low, code=85)
    world.exits(first)
    world.submit(qos="low")
    world.submit()
    assert world.asked_to_stop() == []
    assert world.job(big).bypassed == 1
    assert world.running() == {1}


def test_no_devices_are_kept_for_a_job_that_cannot_run_on_what_is_left_of_the_machine():
    world = World(3, rules=Rules(bypass_limit=0))
    blocker = world.submit()
    three = world.submit(gpus=3)
    world.fails(2)
    pair, small = world.submit(gpus=2), world.submit()
    assert world.states(three, pair, small) == [JobState.PENDING] * 3  # kept for the pair, not for the three
    world.exits(blocker)
    assert world.where(pair) == (0, 1)
    world.exits(pair)
    assert world.where(small) == (0,)
    assert world.why(three).word is Word.DEVICE_UNAVAILABLE


def test_cpu_only_jobs_run_beside_full_devices_under_a_cap_of_their_own():
    world = World(1, rules=Rules(cpu_jobs=2))
    world.submit()
    jobs = [world.submit(gpus=0) for _ in range(3)]
    assert world.states(*jobs) == [JobState.STARTING, JobState.STARTING, JobState.PENDING]
    assert world.why(jobs[2]).word is Word.CPU_JOBS
    world.exits(jobs[0])
    assert world.states(jobs[2]) == [JobState.STARTING]


def test_cpu_only_jobs_run_on_a_machine_without_any_device():
    world = World(0)
    assert world.states(world.submit(gpus=0)) == [JobState.STARTING]
    with pytest.raises(UsageError, match="no GPU"):
        world.submit()


def test_an_array_runs_as_many_elements_at_once_as_its_limit_allows():
    world = World(4)
    first, second, third = world.submitted(array="0-2%2").job_ids
    assert world.states(first, second, third) == [JobState.STARTING, JobState.STARTING, JobState.PENDING]
    assert world.why(third).word is Word.ARRAY_LIMIT
    other = world.submit()
    assert world.states(other) == [JobState.STARTING]
    world.exits(first)
    assert world.states(third) == [JobState.STARTING]


def test_elements_with_promised_devices_count_against_the_limit_of_their_array():
    world = World(3)
    lows = [world.submit(qos="low") for _ in range(3)]
    world.submit(array="0-2%1", qos="high")
    asked = world.asked_to_stop()
    assert len(asked) == 1
    assert set(asked) <= set(lows)


def test_array_elements_know_their_place():
    world = World(1)
    ids = world.submitted(array="1-9:4%2").job_ids
    elements = [world.job(i).array for i in ids]
    assert [e.index for e in elements if e] == list(parse_array("1-9:4").indices)
    assert {(e.array_id, e.count, e.first, e.last, e.step, e.limit) for e in elements if e} == {(ids[0], 3, 1, 9, 4, 2)}
    assert [world.job(i).key for i in ids] == ["1_1", "1_5", "1_9"]


def test_an_array_larger_than_the_rules_allow_is_refused_and_takes_no_ids():
    world = World(1, rules=Rules(max_array=3))
    with pytest.raises(UsageError, match="4 elements"):
        world.submit(array="0-3")
    assert world.submit() == 1


def test_a_job_that_gives_its_device_back_lets_others_go_first_once():
    world = World(1)
    polite, other, third = world.submit(), world.submit(), world.submit()
    world.started(polite)
    world.preempt(polite)
    assert world.asked_to_stop() == [polite]
    world.exits(polite, code=85)
    assert world.running() == {other}
    world.exits(other)
    assert world.running() == {polite}  # then it has its old place again
    world.exits(polite)
    assert world.running() == {third}


def test_a_job_that_gave_its_device_back_does_not_take_it_from_a_lower_level_until_it_has_run_again():
    world = World(1)
    polite, low = world.submit(), world.submit(qos="low")
    world.preempt(polite)
    world.exits(polite, code=85)
    assert world.running() == {low}
    assert world.asked_to_stop() == [polite]  # and nobody since
    assert "gave its devices back" in victims(world.engine.view, world.job(polite), world.now)[0].text
    normal = world.submit()
    assert world.asked_to_stop() == [low]  # others may
    world.exits(low, code=85)
    world.exits(normal)
    assert world.running() == {polite}
    assert not world.job(polite).patient


def test_an_element_of_a_limited_array_gets_the_devices_it_was_promised():
    world = World(1)
    low = world.submit(qos="low")
    first, second = world.submitted(array="0-1%1", qos="high").job_ids
    world.exits(low, code=85)
    assert world.states(first, second) == [JobState.STARTING, JobState.PENDING]


def test_a_job_that_yields_with_nobody_waiting_goes_on_by_itself():
    world = World(1)
    polite = world.submit()
    world.preempt(polite)
    world.exits(polite, code=85)
    assert world.states(polite) == [JobState.STARTING]
    assert not world.job(polite).yielding


def test_a_yielding_job_stays_behind_until_its_device_is_seen_free():
    world = World(1)
    polite, other = world.submit(), world.submit()
    world.preempt(polite)
    world.exits(polite, code=85, clear=False)
    assert world.job(polite).yielding
    world.leaves(polite)
    assert world.running() == {other}


def test_a_job_waits_for_its_begin_time_and_starts_at_it():
    world = World(1)
    job = world.submit(begin=world.now.wall + 90)
    assert world.why(job).word is Word.BEGIN_TIME
    world.passes(89)
    assert world.states(job) == [JobState.PENDING]
    world.passes(2)
    assert world.states(job) == [JobState.STARTING]
    assert world.job(job).eligible_at == 1_000_090.0


def test_a_begin_time_in_the_past_is_no_reason_to_wait():
    world = World(1)
    assert world.states(world.submit(begin=1.0)) == [JobState.STARTING]


def test_a_begin_time_survives_a_restart_of_the_daemon():
    world = World(1)
    job = world.submit(begin=world.now.wall + 90)
    world.crash()
    world.passes(91)
    assert world.states(job) == [JobState.STARTING]


def test_a_cron_job_submits_a_copy_at_each_of_its_times_and_skips_while_one_is_unfinished():
    world = World(1)
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60)
    assert world.why(template).word is Word.CRON
    world.cron_fires(template)
    copy = template + 1
    assert world.job(copy).cron_parent == template
    assert world.running() == {copy}
    world.cron_fires(template)
    assert world.kinds(template)[-1] == "skipped"
    assert str(copy) in world.story(template)[-1]
    world.exits(copy)
    world.cron_fires(template)
    assert world.running() == {copy + 1}
    assert world.states(template) == [JobState.PENDING]


def test_a_cron_time_that_was_handled_already_does_nothing():
    world = World(1)
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60)
    world.cron_fires(template)
    world.exits(template + 1)
    world.handle(CronFired(template, world.now.wall + 60, None))
    assert world.running() == set()
    assert world.engine.state.next_job_id == template + 2


def test_a_held_cron_job_leaves_its_times_out():
    world = World(1)
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60)
    world.hold(template)
    world.cron_fires(template)
    assert world.running() == set()
    world.release(template)
    world.cron_fires(template)
    assert world.running() == {template + 1}


def test_a_cron_template_does_not_keep_singletons_of_its_name_waiting():
    world = World(2)
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60, name="nightly", after="singleton")
    world.cron_fires(template)
    assert world.running() == {template + 1}
    waits = world.submit(name="nightly", after="singleton")
    assert world.why(waits).word is Word.DEPENDENCY


@pytest.mark.parametrize("name", list(PolicyName))
def test_what_a_job_gave_back_and_nobody_could_use_it_takes_again(name: PolicyName):
    world = World(2, rules=Rules(policy=PolicyRules(name)))
    other, gives = world.submit(), world.submit()
    world.started(other, gives)
    world.submit(gpus=2)
    world.preempt(gives)
    world.exits(gives, code=85)
    assert world.running() == {other, gives}
