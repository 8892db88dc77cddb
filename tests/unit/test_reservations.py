"""Reservations: what they keep from whom before they begin, while they are active, and when they are over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World
from reserving import HOUR, reserve, the, unreserve

from gpusched.model.clock import Instant
from gpusched.model.errors import NotAllowed, NotFound, UsageError
from gpusched.model.reservation import Repeat
from gpusched.model.rules import PreemptMode, Rules, default_qos
from gpusched.model.state import JobState
from gpusched.policy import explain
from gpusched.policy.reserve import entitled

# ---- before it begins -------------------------------------------------------------------------------------------


def test_before_it_begins_who_is_gone_in_time_may_start_there() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=2 * HOUR, users="bob")
    late, soon = world.submit(time_limit=2 * HOUR + 1), world.submit(time_limit=2 * HOUR - 1)
    assert world.states(late, soon) == [JobState.PENDING, JobState.STARTING]


def test_an_expected_duration_counts_only_for_who_may_come_back() -> None:
    world = World(2)
    reserve(world, devices="0,1", start_in=2 * HOUR, users="bob")
    assert world.where(world.submit(expected=HOUR))
    assert not world.where(world.submit(expected=HOUR, requeue=False))
    assert world.where(world.submit(expected=HOUR, time_limit=HOUR, requeue=False))


def test_who_may_be_asked_to_leave_starts_for_an_unknown_time_if_it_is_worth_it() -> None:
    world = World(2)
    reserve(world, devices="0,1", start_in=world.rules.policy.min_run, users="bob")
    assert world.where(world.submit())
    assert not world.where(world.submit(requeue=False))
    world.passes(1.0)
    assert not world.where(world.submit())  # it would have been asked to leave before `min_run`


def test_a_job_that_is_too_long_for_every_gap_does_not_wait_for_ever() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=HOUR, duration=12 * HOUR, users="bob", repeat=Repeat.DAILY)
    fits_between = world.submit(time_limit=12 * HOUR)
    assert not world.where(fits_between)
    world.cancel(fits_between)
    assert world.where(world.submit(time_limit=12 * HOUR + 1))


def test_a_job_of_the_reservation_waits_for_its_beginning_and_runs_on_its_devices() -> None:
    world = World(2)
    reserve(world, devices="1", start_in=HOUR)
    job = world.submit(reservation="paper")
    why = world.why(job)
    assert (why.word, why.text) == ("Reservation", "its reservation paper is from Mon 1970-01-12 14:46 to 15:46")
    world.passes(HOUR)
    assert world.where(job) == (1,)


# ---- while it is active -----------------------------------------------------------------------------------------


def test_while_it_is_active_only_its_own_jobs_start_on_its_devices() -> None:
    world = World(2)
    reserve(world, devices="0")
    other, anns_other, own = world.submit("bob"), world.submit("ann"), world.submit("ann", reservation="paper")
    assert (world.where(other), world.where(anns_other), world.where(own)) == ((1,), (), (0,))
    why = world.why(anns_other)
    assert why.word == "Resources"
    text = explain.devices(world.engine.view, world.job(anns_other), world.now)[0].text
    assert "held by job" in text


def test_the_reason_names_the_devices_for_whom_they_are_and_how_long() -> None:
    world = World(2)
    reserve(world, devices="0,1")
    why = world.why(world.submit("bob"))
    assert why.word == "Reservation"
    assert why.text == "devices 0,1 are reserved for ann from Mon 1970-01-12 13:46 to 14:46 (reservation paper)"
    assert why.next == "reservation paper ends"
    verdict = explain.devices(world.engine.view, world.job(1), world.now)[0]
    assert verdict.text == "reserved for ann from Mon 1970-01-12 13:46 to 14:46 (reservation paper)"
    assert not verdict.usable


def test_the_reason_says_what_time_limit_would_let_it_start() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=2 * HOUR, users="bob")
    job = world.submit(time_limit=3 * HOUR)
    assert world.why(job).next.endswith(f"gpusched update {job} --time 2:00:00")
    world.update(job, time_limit=2 * HOUR)
    assert world.where(job) == (0,)


def test_an_account_may_use_it_and_others_are_refused_at_the_door() -> None:
    world = World(1)
    reserve(world, devices="0", users="", accounts="vision")
    with pytest.raises(NotAllowed, match="is for account vision, not for ann"):
        world.submit(reservation="paper")
    assert world.where(world.submit("bob", reservation="paper", account="vision")) == (0,)


def test_a_job_for_an_unknown_or_too_small_reservation_is_refused() -> None:
    world = World(2)
    reserve(world, devices="0")
    with pytest.raises(UsageError, match="unknown reservation 'thesis'") as caught:
        world.submit(reservation="thesis")
    assert caught.value.hint == "known: paper"
    with pytest.raises(UsageError, match="asks for 2 devices, reservation 'paper' has 1"):
        world.submit(reservation="paper", gpus=2)


def test_a_waiting_job_is_moved_into_a_reservation_and_out_of_it() -> None:
    world = World(2)
    reserve(world, devices="0", start_in=HOUR)
    world.submit(gpus=2, time_limit=HOUR - 1)
    job = world.submit()
    world.update(job, reservation="paper")
    assert world.why(job).word == "Reservation"
    world.update(job, reservation="")
    assert world.why(job).word == "Resources"
    with pytest.raises(UsageError):
        world.update(job, reservation="nonesuch")
    with pytest.raises(NotAllowed):
        world.update(world.submit("bob"), by="bob", reservation="paper")


def test_no_level_of_service_preempts_a_job_on_reserved_devices() -> None:
    world = World(1)
    reserve(world, devices="0")
    own = world.submit(qos="low", reservation="paper")
    high = world.submit("bob", qos="high")
    assert world.states(own, high) == [JobState.STARTING, JobState.PENDING]
    assert world.why(high).word == "Reservation"


def test_within_the_reservation_levels_preempt_as_everywhere() -> None:
    world = World(1)
    reserve(world, devices="0")
    low = world.submit(qos="low", reservation="paper")
    world.submit(qos="high", reservation="paper")
    assert world.asked_to_stop() == [low]


# ---- when it begins ---------------------------------------------------------------------------------------------


def test_at_the_beginning_strangers_are_asked_to_leave_and_go_on_elsewhere() -> None:
    world = World(2)
    reserve(world, devices="0", start_in=HOUR)
    stranger = world.submit("bob")
    assert world.where(stranger) == (0,)
    world.started(stranger)
    own = world.submit(reservation="paper")
    world.passes(HOUR - 1)
    assert not world.asked_to_stop()
    world.passes(1)
    assert world.asked_to_stop() == [stranger]
    world.exits(stranger, code=85, saved_step=7)
    assert (world.where(own), world.where(stranger)) == ((0,), (1,))
    assert any("reserved from now on (reservation paper)" in text for text in world.story(stranger))


def test_a_gang_with_one_foot_in_the_reservation_leaves_as_a_whole() -> None:
    world = World(2)
    reserve(world, devices="0", start_in=HOUR, users="bob")
    gang = world.submit(gpus=2)
    world.started(gang)
    world.passes(HOUR)
    assert world.asked_to_stop() == [gang]
    world.exits(gang, code=85)
    assert world.why(gang).word == "Reservation"


def test_a_stranger_that_does_not_leave_is_killed_after_its_grace() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=HOUR, users="bob")
    job = world.submit(grace=30.0)
    world.started(job)
    world.passes(HOUR + 29)
    assert not world.killed()
    world.passes(1)
    assert world.killed() == [job]
    world.exits(job, signal=9)
    assert world.job(job).state is JobState.PENDING


def test_a_level_that_is_cancelled_when_preempted_comes_back_from_a_reservation() -> None:
    levels = default_qos()
    levels["low"] = replace(levels["low"], mode=PreemptMode.CANCEL)
    world = World(1, rules=Rules(qos=levels))
    job = world.submit(qos="low")
    world.started(job)
    reserve(world, devices="0", users="bob")
    world.exits(job, code=85)
    assert world.job(job).state is JobState.PENDING


def test_a_job_without_requeue_that_is_still_there_ends() -> None:
    world = World(1)
    job = world.submit(requeue=False)
    world.started(job)
    reserve(world, devices="0", users="bob")
    world.exits(job, code=85)
    assert world.job(job).state is JobState.PREEMPTED


def test_devices_promised_to_a_stranger_are_withdrawn() -> None:
    world = World(1)
    victim = world.submit(qos="low")
    world.started(victim)
    high = world.submit(qos="high")
    assert world.job(high).earmark
    reserve(world, devices="0", users="bob")
    assert not world.job(high).earmark
    world.exits(victim, code=85)
    assert world.states(victim, high) == [JobState.PENDING, JobState.PENDING]


def test_a_promise_is_withdrawn_when_it_would_be_kept_too_late() -> None:
    world = World(1)
    victim = world.submit(qos="low", grace=HOUR)
    world.started(victim)
    high = world.submit(qos="high", time_limit=HOUR)
    reserve(world, devices="0", users="bob", start_in=HOUR + 60)
    assert world.job(high).earmark
    world.passes(120)
    world.exits(victim, code=85)
    assert not world.where(high)
    assert world.why(high).word == "Reservation"


# ---- when it is over --------------------------------------------------------------------------------------------


def test_at_the_end_its_jobs_are_ordinary_jobs() -> None:
    world = World(2)
    reserve(world, devices="0", duration=HOUR)
    runs, waits = world.submit(reservation="paper"), world.submit(reservation="paper")
    world.started(runs)
    world.passes(HOUR)
    assert world.where(runs) == (0,)
    assert world.where(waits) == (1,)
    assert not world.asked_to_stop()
    assert {world.job(job).spec.request.reservation for job in (runs, waits)} == {""}
    assert "reservation paper is over: from now on it is an ordinary job" in world.story(waits)
    assert not world.engine.view.reservations
    assert world.store.reservations()[0].ended_at == world.now.wall


def test_an_ended_job_of_a_reservation_that_is_over_runs_again_as_an_ordinary_one() -> None:
    world = World(2)
    reserve(world, devices="0", duration=HOUR)
    job = world.submit(reservation="paper")
    world.started(job)
    world.exits(job, code=1)
    world.passes(HOUR)
    assert world.job(job).spec.request.reservation == "paper"  # as it ran
    world.requeue(job)
    assert world.where(job)
    assert world.job(job).spec.request.reservation == ""


def test_taking_it_back_opens_the_devices_at_once() -> None:
    world = World(1)
    reserve(world, devices="0", users="ann")
    stranger, own = world.submit("bob"), world.submit(reservation="paper", gpus=1)
    world.started(own)
    assert unreserve(world) == "taken back; 1 job of it is ordinary now"
    world.exits(own)
    assert world.where(stranger) == (0,)
    with pytest.raises(NotFound):
        unreserve(world)
    reserve(world, devices="0", start_in=HOUR)  # its name is free again


def test_a_repeating_one_is_armed_again_and_its_jobs_wait_for_the_next_window() -> None:
    world = World(2)
    reserve(world, devices="0", start_in=HOUR, duration=HOUR, repeat=Repeat.DAILY)
    runs = world.submit(reservation="paper")
    world.passes(HOUR)
    world.started(runs)
    waits = world.submit(reservation="paper")
    start = the(world).start
    world.passes(HOUR)
    assert (the(world).start, the(world).begun) == (start + 24 * HOUR, False)
    assert world.why(waits).word == "Reservation"
    world.passes(23 * HOUR)
    assert not world.asked_to_stop()  # it still runs there, and is entitled
    world.exits(runs)
    assert world.where(waits) == (0,)


# ---- crashes and clocks -----------------------------------------------------------------------------------------


def test_a_daemon_that_was_away_over_the_beginning_asks_when_it_is_back() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=HOUR, duration=HOUR)
    stranger = world.submit("bob")
    world.started(stranger)
    own = world.submit(reservation="paper")
    world.now = world.now.later(1.5 * HOUR)
    world.crash()
    assert world.asked_to_stop() == [stranger]
    world.exits(stranger, code=85)
    assert world.where(own) == (0,)


def test_a_daemon_that_was_away_for_a_whole_window_asks_nobody() -> None:
    world = World(1)
    reserve(world, "once", devices="0", start_in=HOUR, duration=HOUR)
    reserve(world, "daily", devices="0", start_in=3 * HOUR, duration=HOUR, repeat=Repeat.DAILY)
    stranger = world.submit("bob")
    world.started(stranger)
    world.now = world.now.later(5 * 24 * HOUR + 5 * HOUR)
    world.crash()
    assert not world.asked_to_stop()
    assert list(world.engine.view.reservations) == ["daily"]
    assert the(world, "daily").start == world.now.wall + 22 * HOUR


def test_what_was_begun_is_begun_after_a_crash() -> None:
    world = World(1)
    reserve(world, devices="0")
    own = world.submit(reservation="paper")
    before = the(world)
    world.crash()
    assert the(world) == before
    assert world.where(own) == (0,)
    assert not world.where(world.submit("bob"))


def test_a_clock_that_is_set_back_takes_nothing_back() -> None:
    world = World(1)
    reserve(world, devices="0")
    world.now = Instant(world.now.wall - 600, world.now.boot + 1)
    own, stranger = world.submit(reservation="paper"), world.submit("bob")
    assert (world.where(own), world.where(stranger)) == ((0,), ())


def test_a_job_without_requeue_that_is_over_just_in_time_starts_before_the_reservation() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=HOUR, users="bob")
    assert world.where(world.submit(requeue=False, time_limit=HOUR)) == (0,)


def test_the_name_of_a_reservation_alone_entitles_nobody() -> None:
    world = World(1)
    reserve(world, devices="0", users="ann")
    job = world.job(world.submit(reservation="paper"))
    assert entitled(the(world), job)
    assert not entitled(replace(the(world), users=("bob",)), job)


def test_a_job_that_has_come_back_as_often_as_it_may_counts_as_one_that_does_not() -> None:
    world = World(1)
    reserve(world, devices="0", start_in=2 * HOUR, users="bob")
    never, often = world.submit(max_requeues=0), world.submit(max_requeues=1)
    assert (world.where(never), world.where(often)) == ((), (0,))
