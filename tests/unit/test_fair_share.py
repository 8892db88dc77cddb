"""Fair share in numbers worked out by hand: what is used, how it decays, and what it does to the factor."""

from __future__ import annotations

from math import isclose, log

import pytest

from gpusched.model.changes import AccountUsage
from gpusched.model.errors import UsageError
from gpusched.model.job import Job, JobSpec, Owner
from gpusched.model.policy import DAY, FairShare, PolicyRules, Weights
from gpusched.model.state import JobState
from gpusched.policy.decay import Decayed
from gpusched.policy.fairshare import Ledger

T = 1_800_000_000.0  # some day
PLAIN = FairShare(half_life_days=0.0, entry_hours=0.0)  # nothing decays, nothing is charged beforehand
WEEK = FairShare(half_life_days=7.0, entry_hours=0.0)


def a_job(number: int, account: str) -> Job:
    return Job(number, Owner(1, 1, account), JobSpec(("true",), "/"), JobState.PENDING, T)


def ledger(rules: FairShare, *accounts: str) -> Ledger:
    made = Ledger(rules)
    for account in accounts:
        made.enter(account)
    return made


@pytest.mark.parametrize(
    "rules",
    [
        PolicyRules(weights=Weights(age=-1.0)),
        PolicyRules(weights=Weights(age_days=0.0)),
        PolicyRules(fair_share=FairShare(half_life_days=-1.0)),
        PolicyRules(fair_share=FairShare(damping=0.0)),
        PolicyRules(fair_share=FairShare(default_share=0.0)),
        PolicyRules(fair_share=FairShare(shares=(("ann", 0.0),))),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: PolicyRules) -> None:
    with pytest.raises(UsageError):
        rules.check()


def test_a_live_attempt_counts_every_second_of_every_device() -> None:
    fair = ledger(PLAIN, "ann")
    fair.start(a_job(1, "ann"), 4, T)
    assert fair.usage("ann", T) == 0.0
    assert fair.usage("ann", T + 10) == pytest.approx(40.0)
    fair.start(a_job(2, "ann"), 0.5, T + 10)  # half of a device's memory
    assert fair.usage("ann", T + 20) == pytest.approx(85.0)
    fair.end(1, 20.0, T + 20)
    assert fair.usage("ann", T + 30) == pytest.approx(90.0)
    assert fair.usage("bob", T + 30) == 0.0


def test_what_was_used_a_half_life_ago_counts_half() -> None:
    fair = ledger(WEEK, "ann")
    fair.load([AccountUsage("ann", 1000.0, T)], T)
    assert fair.usage("ann", T + 7 * DAY) == pytest.approx(500.0)
    assert fair.usage("ann", T + 14 * DAY) == pytest.approx(250.0)


def test_running_for_a_half_life_weighs_half_of_the_integral() -> None:
    fair = ledger(WEEK, "ann")
    fair.start(a_job(1, "ann"), 2, T)
    expected = 2 * 7 * DAY / log(2) * 0.5  # 2 devices · (1 − ½)/λ
    assert fair.usage("ann", T + 7 * DAY) == pytest.approx(expected)
    fair.end(1, 7 * DAY, T + 7 * DAY)
    assert fair.usage("ann", T + 7 * DAY) == pytest.approx(expected)
    assert fair.usage("ann", T + 14 * DAY) == pytest.approx(expected / 2)


def test_an_end_that_is_learned_late_is_charged_for_what_ran_and_has_decayed_since() -> None:
    fair = ledger(WEEK, "ann")
    fair.start(a_job(1, "ann"), 1, T)
    fair.end(1, 3600.0, T + 3600 + 7 * DAY)
    assert fair.usage("ann", T + 3600 + 7 * DAY) == pytest.approx(1800.0, rel=1e-2)


def test_an_attempt_that_never_started_costs_nothing() -> None:
    fair = ledger(FairShare(), "ann")
    fair.start(a_job(1, "ann"), 8, T)
    assert fair.usage("ann", T) == 8 * 900.0
    fair.end(1, 0.0, T + 5)
    assert fair.usage("ann", T + 5) == 0.0
    assert fair.changed() == (AccountUsage("ann", 0.0, T + 5),)


def test_a_start_is_charged_at_once_and_use_replaces_the_charge() -> None:
    fair = ledger(FairShare(half_life_days=0.0, entry_hours=0.25), "ann")
    fair.start(a_job(1, "ann"), 2, T)
    for after, expected in ((0, 1800), (100, 1800), (900, 1800), (901, 1802), (3600, 7200)):
        assert fair.usage("ann", T + after) == pytest.approx(expected)
    assert fair.usage("ann", T + 100) == pytest.approx(1800)  # a look ahead changes nothing
    fair.start(a_job(2, "ann"), 1, T + 500)
    assert fair.usage("ann", T + 600) == pytest.approx(1800 + 900)
    fair.end(1, 600.0, T + 600)
    assert fair.usage("ann", T + 600) == pytest.approx(2 * 600 + 900)


def test_a_burst_of_short_jobs_leaves_no_charge_behind() -> None:
    fair = ledger(FairShare(half_life_days=0.0, entry_hours=0.25), "ann")
    for number in range(300):
        fair.start(a_job(number, "ann"), 1, T + number % 7)
    assert fair.usage("ann", T + 6) == pytest.approx(300 * 900)
    for number in range(300):
        fair.end(number, 10.0, T + 100)
    assert fair.usage("ann", T + 100) == pytest.approx(3000)


def test_the_factor_is_one_half_for_an_account_that_used_exactly_its_share() -> None:
    fair = ledger(PLAIN)
    fair.load([AccountUsage("ann", 500.0, T), AccountUsage("bob", 300.0, T), AccountUsage("eve", 200.0, T)], T)
    assert fair.share("ann") == pytest.approx(1 / 3)
    assert fair.factor("ann", T) == pytest.approx(2 ** (-0.5 * 3))
    assert fair.factor("bob", T) == pytest.approx(2 ** (-0.3 * 3))
    assert fair.factor("new", T) == 1.0
    two = ledger(PLAIN)
    two.load([AccountUsage("ann", 5.0, T), AccountUsage("bob", 5.0, T)], T)
    assert two.factor("ann", T) == two.factor("bob", T) == pytest.approx(0.5)


def test_shares_and_damping_are_those_of_the_rules() -> None:
    rules = FairShare(0.0, damping=2.0, default_share=1.0, shares=(("vision", 3.0),), entry_hours=0.0)
    fair = ledger(rules)
    fair.load([AccountUsage("vision", 60.0, T), AccountUsage("ann", 40.0, T)], T)
    assert (fair.share("vision"), fair.share("ann")) == (0.75, 0.25)
    assert fair.factor("vision", T) == pytest.approx(2 ** (-0.6 / (0.75 * 2)))
    assert fair.factor("ann", T) == pytest.approx(2 ** (-0.4 / (0.25 * 2)))


def test_an_account_with_waiting_jobs_takes_part_in_the_shares_and_one_without_is_forgotten() -> None:
    fair = ledger(PLAIN, "ann", "bob", "bob")
    assert (fair.share("ann"), fair.accounts()) == (0.5, ["ann", "bob"])
    fair.leave("bob")
    assert fair.share("ann") == 0.5
    fair.leave("bob")
    assert (fair.share("ann"), fair.accounts()) == (1.0, ["ann"])
    fair.start(a_job(1, "ann"), 1, T)
    fair.end(1, 3600.0, T + 3600)
    fair.leave("ann")
    assert fair.accounts() == ["ann"]  # it has used something
    assert fair.share("stranger") == 0.5


def test_usage_comes_back_after_a_restart_with_live_attempts_told_anew() -> None:
    fair = ledger(WEEK, "ann", "bob")
    fair.start(a_job(1, "ann"), 4, T)
    fair.end(1, 3600.0, T + 3600)
    fair.start(a_job(2, "bob"), 2, T + 1800)
    later = T + 9000
    again = ledger(WEEK, "ann", "bob")
    again.load(fair.changed(), later)
    again.resume(a_job(2, "bob"), 2, T + 1800, later)
    for account in ("ann", "bob"):
        assert again.usage(account, later) == pytest.approx(fair.usage(account, later))
        assert again.factor(account, later) == pytest.approx(fair.factor(account, later))
    assert fair.changed() == ()


def test_an_account_is_forgotten_only_when_its_row_is_committed() -> None:
    fair = ledger(WEEK, "ann", "bob")
    fair.start(a_job(1, "ann"), 1, T)
    fair.end(1, 0.0, T)
    fair.leave("ann")
    assert fair.accounts() == ["ann", "bob"]
    assert fair.changed() == (AccountUsage("ann", 0.0, T),)
    assert (fair.accounts(), fair.share("bob")) == (["bob"], 1.0)


def test_rows_that_have_decayed_to_nothing_are_not_taken_in() -> None:
    fair = ledger(WEEK)
    fair.load([AccountUsage("old", 3600.0, T - 365 * DAY), AccountUsage("broken", -5.0, T)], T)
    assert (fair.accounts(), fair.entries(), fair.total(T)) == ([], (), 0.0)


def test_a_clock_that_was_set_back_harms_nothing() -> None:
    fair = ledger(WEEK, "ann")
    fair.start(a_job(1, "ann"), 1, T)
    fair.start(a_job(2, "ann"), 1, T + 3600)
    assert fair.usage("ann", T - DAY) >= 0.0
    fair.end(2, 10.0, T - DAY)  # a day back
    assert fair.usage("ann", T - DAY) == pytest.approx(10.0, abs=1.0)
    assert fair.usage("ann", T - DAY + 100) == pytest.approx(110.0, abs=1.0)
    fair.end(1, 3800.0, T - DAY + 200)
    assert fair.usage("ann", T - DAY + 200) == pytest.approx(3810.0, rel=5e-3)  # some of it has decayed
    row = fair.changed()[0]
    early = ledger(WEEK)
    early.load([row], T - 30 * DAY)  # a row from the future
    assert early.usage("ann", T - 30 * DAY) == pytest.approx(row.device_seconds)


def test_an_end_that_nobody_had_started_is_ignored() -> None:
    fair = ledger(WEEK, "ann")
    fair.end(7, 100.0, T)
    assert fair.changed() == () == fair.entries()


def test_very_unequal_shares_never_make_a_factor_of_nothing() -> None:
    rules = FairShare(0.0, damping=0.001, shares=(("big", 1e9), ("small", 1e-6)), entry_hours=0.0)
    fair = ledger(rules, "big")
    fair.load([AccountUsage("small", 1e12, T)], T)
    assert 0.0 < fair.factor("small", T) < 1e-200


def test_the_version_changes_with_everything_that_changes_a_factor() -> None:
    fair = ledger(WEEK)
    seen = {fair.version}
    for change in (
        lambda: fair.enter("ann"),
        lambda: fair.start(a_job(1, "ann"), 1, T),
        lambda: fair.end(1, 5.0, T + 5),
        lambda: fair.enter("bob"),
        lambda: fair.leave("bob"),
    ):
        change()
        assert fair.version not in seen
        seen.add(fair.version)
    fair.enter("ann")
    assert fair.version in seen  # she was known
    assert isclose(fair.share("ann"), 1.0)


def test_what_is_charged_beforehand_is_right_after_many_starts() -> None:
    fair = ledger(FairShare(half_life_days=0.0, entry_hours=1.0), "ann")
    starts = [*range(100), *range(2000, 2050), 3800]  # a hundred have outgrown the charge when the last one comes
    for number, start in enumerate(starts):
        fair.start(a_job(number, "ann"), 1, T + start)
    assert fair.usage("ann", T + 3900) == pytest.approx(sum(max(3600, 3900 - start) for start in starts))


def test_an_attempt_that_seems_to_have_started_in_the_future_counts_from_now() -> None:
    fair, other = (ledger(FairShare(half_life_days=0.0, entry_hours=1.0), "ann") for _ in range(2))
    fair.resume(a_job(1, "ann"), 1, T + 5000, T)
    other.start(a_job(1, "ann"), 1, T)
    assert [each.usage("ann", T + 4000) for each in (fair, other)] == [4000.0, 4000.0]


def test_where_the_clock_goes_back_a_little_the_sums_stay_as_they_are() -> None:
    sums = Decayed(log(2) / 100, 0.0, T)
    sums.start(1, T, T)
    sums.end(1, T, 100.0, T + 100)
    before = sums.ended
    sums.settle(T + 50)
    assert sums.ended == before > 0


def test_what_was_really_had_is_told_without_what_starts_are_charged_beforehand() -> None:
    fair = ledger(FairShare(half_life_days=0.0, entry_hours=1.0), "ann")
    fair.start(a_job(1, "ann"), 2, T)
    assert (fair.usage("ann", T + 600), fair.served("ann", T + 600)) == (7200.0, 1200.0)
