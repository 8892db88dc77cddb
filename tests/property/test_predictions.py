"""Predictions from any history: in order, never negative, the same whatever the order in which it was learned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE

from gpusched.model.past import Past
from gpusched.policy.predict import KEPT, Durations

seconds = st.one_of(st.floats(0, 1e7), st.integers(0, 20).map(float))
names = st.sampled_from(("train", "run-1", "run-2"))
users, accounts = st.sampled_from(("ann", "bob")), st.sampled_from(("ann", "lab"))
pasts = st.builds(Past, users, accounts, names, st.sampled_from((0, 1, 8)), seconds)
histories = st.lists(pasts, max_size=60)
asked = st.tuples(st.sampled_from(("ann", "eve")), st.just("lab"), st.sampled_from(("train", "run-3")), st.just(8))


def learned(history: list[Past]) -> Durations:
    durations = Durations()
    for past in history:
        durations.learn(past)
    return durations


@PROFILE
@given(histories, asked, seconds)
def test_low_is_below_middle_is_below_high_and_nothing_is_negative(
    history: list[Past], who: tuple[str, str, str, int], ran: float
) -> None:
    found = learned(history).predict(*who, ran)
    longer = sum(past.ran > ran for past in history)
    assert (found is None) == (longer < 3)
    if found is not None:
        assert 0 <= found.low <= found.middle <= found.high
        assert found.mean >= 0 and found.samples <= longer
        assert any(past.ran - ran == found.high for past in history), "it has been seen"


@PROFILE
@given(histories, asked, seconds, st.randoms(use_true_random=False))
def test_the_order_in_which_equal_jobs_ended_makes_no_difference(
    history: list[Past], who: tuple[str, str, str, int], ran: float, random: st.DataObject
) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert len(history) < KEPT
    assert learned(history).predict(*who, ran) == learned(shuffled).predict(*who, ran)


@PROFILE
@given(histories, histories, asked, seconds)
def test_what_ends_later_does_not_change_what_was_said_before(
    before: list[Past], after: list[Past], who: tuple[str, str, str, int], ran: float
) -> None:
    durations = learned(before)
    said = (durations.predict(*who, ran), durations.index(*who, ran), durations.version)
    for past in after:
        durations.learn(past)
    again = learned(before)
    assert said == (again.predict(*who, ran), again.index(*who, ran), again.version)


@PROFILE
@given(histories, asked, seconds)
def test_the_index_is_a_time_that_is_never_negative(
    history: list[Past], who: tuple[str, str, str, int], ran: float
) -> None:
    index = learned(history).index(*who, ran)
    assert index >= 0
    longest = max((past.ran for past in history), default=0.0)
    assert index <= max(600.0, ran, (len(history) + 1) * longest)
