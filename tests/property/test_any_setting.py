"""What holds whatever a user sets, in workloads of every kind of job: whole, sharing, elastic, without devices, arrays,
reserved; under limits, quotas and reservations, for the daemon's own rules and the published ones.

Never over-allocated, gangs whole, indexes right, a true reason for everybody (engine/invariants.py after every step);
nobody leaves for a job that stands behind it or could be spared (tests/judging.py before every decision); no livelock,
and everything ends.
"""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from judging import Judge
from profiles import PROFILE
from reasoning import reasons_are_true
from workloads import Workload, daemon_settings, published_settings, workloads

from gpusched.model.policy import PolicyName
from gpusched.model.rules import Rules

MOST = 4000  # moments at which something happens
SOME = settings(PROFILE, max_examples=max(50, PROFILE.max_examples // 4))


def held_to_the_law(rules: Rules, workload: Workload) -> None:
    judge = Judge()
    play = workload.play(rules, watch=judge)
    for _ in range(MOST):
        if not play.goes_on:
            break
        play.step()
        if rules.policy.calm:  # by count alone devices may stay idle beside one who was counted in and finds no place
            for word in reasons_are_true(play):
                event(f"reason: {word}")
    assert not play.left, f"not ended: {sorted(play.left)}"
    event(f"victims: {judge.seen['victims'] > 0}, moved: {judge.seen['moved'] > 0}")


@pytest.mark.parametrize("name", PolicyName)
@given(st.data())
@SOME
def test_decisions_are_lawful_and_everything_ends_however_the_daemon_is_configured(
    name: PolicyName, data: st.DataObject
) -> None:
    held_to_the_law(data.draw(daemon_settings(st.just(name))), data.draw(workloads()))


@given(published_settings(), workloads())
@PROFILE
def test_decisions_are_lawful_and_everything_ends_under_the_published_rules(rules: Rules, workload: Workload) -> None:
    held_to_the_law(rules, workload)
