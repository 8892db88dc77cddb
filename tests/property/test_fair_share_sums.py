"""The ledger's sums, kept at one moment and moved on, equal what adding up every attempt afresh gives."""

from __future__ import annotations

from math import exp, expm1, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.model.changes import AccountUsage
from gpusched.model.job import Job, JobSpec, Owner
from gpusched.model.policy import DAY, FairShare
from gpusched.model.state import JobState
from gpusched.policy.fairshare import Ledger

T = 1_800_000_000.0
ACCOUNTS = ("ann", "bob", "eve")
rules = st.builds(
    FairShare,
    half_life_days=st.sampled_from([0.0, 0.01, 1.0, 7.0]),
    damping=st.sampled_from([0.5, 1.0, 3.0]),
    default_share=st.sampled_from([0.5, 1.0]),
    shares=st.sampled_from([(), (("ann", 3.0),), (("ann", 0.1), ("eve", 5.0))]),
    entry_hours=st.sampled_from([0.0, 0.25, 2.0]),
)
gaps = st.sampled_from([0.0, 0.0, 1.0, 17.0, 400.0, 1000.0, 7200.0, 90_000.0])
steps = st.tuples(gaps, st.sampled_from(ACCOUNTS), st.sampled_from([0.25, 1, 2, 8]), st.booleans(), st.floats(0, 1))
histories = st.lists(steps, max_size=40)


class Plain:
    """Every attempt by itself, added up anew at each question."""

    def __init__(self, fair: FairShare) -> None:
        self.rate = log(2) / (fair.half_life_days * DAY) if fair.half_life_days else 0.0
        self.entry = fair.entry_hours * 3600
        self.live: dict[int, tuple[str, float, float]] = {}
        self.ended: list[tuple[str, float, float, float]] = []  # account, devices, seconds, end

    def used(self, seconds: float) -> float:
        return -expm1(-self.rate * seconds) / self.rate if self.rate else seconds

    def usage(self, account: str, now: float) -> float:
        old = sum(
            g * self.used(ran) * exp(-self.rate * (now - end)) for a, g, ran, end in self.ended if a == account
        )
        young = sum(
            g * (self.used(now - start) + max(0.0, self.entry - (now - start)))
            for a, g, start in self.live.values()
            if a == account
        )
        return old + young


def a_job(number: int, account: str) -> Job:
    return Job(number, Owner(1, 1, account), JobSpec(("true",), "/"), JobState.PENDING, T)


def play(fair: FairShare, history: list[tuple[float, str, float, bool, float]]) -> tuple[Ledger, Plain, float]:
    ledger, plain, now = Ledger(fair), Plain(fair), T
    for number, (gap, account, gpus, ends, part) in enumerate(history):
        now += gap
        if ends and plain.live:
            first = min(plain.live)
            owner, devices, start = plain.live.pop(first)
            ran = (now - start) * part
            plain.ended.append((owner, devices, ran, start + ran))
            ledger.end(first, ran, now)
        else:
            plain.live[number] = (account, gpus, now)
            ledger.start(a_job(number, account), gpus, now)
    return ledger, plain, now


@settings(max_examples=150, deadline=None)
@given(fair=rules, history=histories, ahead=gaps)
def test_the_sums_equal_every_attempt_added_up(
    fair: FairShare, history: list[tuple[float, str, float, bool, float]], ahead: float
) -> None:
    ledger, plain, now = play(fair, history)
    for moment in (now, now + ahead, now):  # a look ahead leaves no trace
        for account in ACCOUNTS:
            expected = plain.usage(account, moment)
            assert ledger.usage(account, moment) == pytest.approx(expected, rel=1e-6, abs=1e-3)
            assert 0.0 < ledger.factor(account, moment) <= 1.0
        total = sum(plain.usage(account, moment) for account in ACCOUNTS)
        assert ledger.total(moment) == pytest.approx(total, rel=1e-6, abs=1e-3)


@settings(max_examples=80, deadline=None)
@given(fair=rules, history=histories, away=gaps)
def test_a_restart_changes_nothing(
    fair: FairShare, history: list[tuple[float, str, float, bool, float]], away: float
) -> None:
    ledger, plain, now = play(fair, history)
    rows = {row.account: row for row in ledger.entries()}
    assert {row.account: row for row in ledger.changed()}.items() <= rows.items()
    now += away
    again = Ledger(fair)
    again.load(rows.values(), now)
    for number, (account, gpus, start) in sorted(plain.live.items(), key=lambda item: item[1][2]):
        again.resume(a_job(number, account), gpus, start, now)
    for account in ACCOUNTS:
        assert again.usage(account, now) == pytest.approx(ledger.usage(account, now), rel=1e-6, abs=1.0)


@given(
    fair=rules,
    used=st.lists(st.floats(0, 1e9), min_size=3, max_size=3),
    more=st.floats(0, 1e9),
)
def test_more_usage_never_raises_a_factor_and_never_lowers_another(
    fair: FairShare, used: list[float], more: float
) -> None:
    before, after = Ledger(fair), Ledger(fair)
    for made, extra in ((before, 0.0), (after, more)):
        made.load([AccountUsage(a, 2.0 + u + extra * (a == "ann"), T) for a, u in zip(ACCOUNTS, used, strict=True)], T)
    slack = 1 + 1e-9
    assert after.factor("ann", T) <= before.factor("ann", T) * slack
    for other in ("bob", "eve"):
        assert after.factor(other, T) * slack >= before.factor(other, T)


@given(
    jumps=st.lists(
        st.tuples(st.floats(-1e7, 1e7), st.sampled_from(ACCOUNTS), st.booleans(), st.floats(0, 1e5)), max_size=30
    )
)
def test_a_clock_that_jumps_anywhere_never_gives_a_negative_usage(
    jumps: list[tuple[float, str, bool, float]],
) -> None:
    ledger, now, live = Ledger(FairShare()), T, set()
    for number, (jump, account, ends, ran) in enumerate(jumps):
        now += jump
        if ends and live:
            ledger.end(live.pop(), ran, now)
        else:
            ledger.start(a_job(number, account), 1, now)
            live.add(number)
        for moment in (now - 1e6, now, now + 1e6):
            for name in ACCOUNTS:
                assert ledger.usage(name, moment) >= 0.0
                assert 0.0 < ledger.factor(name, moment) <= 1.0
    assert all(row.device_seconds >= 0.0 for row in ledger.entries())
