"""Durations learned from ended jobs: which jobs count as similar, what is said of them, and the index to order by."""

from __future__ import annotations

import pytest

from gpusched.model.past import REMEMBERED, Past
from gpusched.policy import predict
from gpusched.policy.predict import KEPT, UNKNOWN, Durations, Prediction, RunTimes


def known(*times: float, user: str = "ann", account: str = "lab", name: str = "train", gpus: int = 4) -> Durations:
    return more(Durations(), *times, user=user, account=account, name=name, gpus=gpus)


def more(
    durations: Durations, *times: float, user: str = "ann", account: str = "lab", name: str = "train", gpus: int = 4
) -> Durations:
    for ran in times:
        durations.learn(Past(user, account, name, gpus, ran))
    return durations


def asked(
    durations: Durations, user: str = "ann", account: str = "lab", name: str = "train", gpus: int = 4, ran: float = 0.0
) -> Prediction | None:
    return durations.predict(user, account, name, gpus, ran)


def test_quantiles_are_run_times_that_were_seen() -> None:
    found = asked(known(*range(10, 110, 10)))
    assert found == Prediction(55.0, 20, 50, 90, 10, "10 jobs named train by ann on 4 devices")


def test_of_a_job_that_runs_only_longer_ones_are_considered() -> None:
    found = asked(known(*range(10, 110, 10)), ran=65.0)
    assert found == Prediction(20.0, 5, 15, 35, 4, "4 longer jobs named train by ann on 4 devices")


def test_nothing_is_said_from_nothing_or_from_too_few() -> None:
    assert asked(Durations()) is None
    assert asked(known(10, 20)) is None
    assert asked(known(10, 20, 30, 40), ran=25) is None
    assert asked(known(10, 20, 30), ran=30) is None


@pytest.mark.parametrize(
    ("who", "basis"),
    [
        ({}, "3 jobs named train by ann on 4 devices"),
        ({"user": "bob"}, "3 jobs named train on 4 devices"),
        ({"name": "other"}, "3 jobs by ann on 4 devices"),
        ({"user": "bob", "name": "other"}, "3 jobs of lab on 4 devices"),
        ({"user": "bob", "account": "bob", "name": "other"}, "3 jobs on 4 devices"),
        ({"gpus": 1}, "3 jobs"),
    ],
)
def test_the_most_similar_jobs_are_taken_of_which_there_are_enough(who: dict[str, str], basis: str) -> None:
    found = asked(known(10, 20, 30), **who)  # type: ignore[arg-type]
    assert found is not None and found.basis == basis


def test_more_similar_jobs_outweigh_any_number_of_others() -> None:
    durations = more(known(10, 20, 30, name="train"), *[9000.0] * 100, name="other")
    found = asked(durations)
    assert found is not None and found.high == 30


def test_who_outlives_similar_jobs_is_compared_with_less_similar_ones() -> None:
    durations = more(known(10, 20, 30, name="train"), 100, 200, 300, name="other")
    found = asked(durations, ran=50)
    assert found is not None and (found.low, found.high) == (50, 250)
    assert found.basis == "3 longer jobs by ann on 4 devices"


def test_names_that_differ_in_digits_only_are_similar() -> None:
    durations = more(known(10, name="run-1"), 20, name="run-2")
    more(durations, 30, name="run-17")
    found = asked(durations, name="run-18")
    assert found is not None and found.basis == "3 jobs named like run-# by ann on 4 devices"
    assert asked(durations, name="run-a") == Prediction(20, 10, 20, 30, 3, "3 jobs by ann on 4 devices")


def test_one_device_is_a_device() -> None:
    found = asked(known(10, 20, 30, gpus=1), gpus=1)
    assert found is not None and found.basis.endswith("on 1 device")


def test_only_the_latest_jobs_of_a_class_are_remembered() -> None:
    found = asked(known(*[50_000.0] * 10, *[float(i) for i in range(1, KEPT + 1)]))
    assert found is not None and found.samples == KEPT and found.high <= KEPT
    times = RunTimes()
    for ran in [7.0] * (2 * KEPT) + [8.0]:
        times.learn(ran)
    assert times.ordered == [7.0] * (KEPT - 1) + [8.0]


def test_the_classes_that_have_not_grown_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CLASSES", 8)
    durations = known(10, 20, 30, user="old", name="old")
    for number in range(20):
        more(durations, 100, 100, 100, user=f"user {'x' * number}", name="x" * number)
    found = asked(durations, user="old", name="old")
    assert found is not None and "old" not in found.basis
    assert len(durations._classes) == 8


# ---- the index ------------------------------------------------------------------------------------------------------


def least(times: list[float], ran: float) -> float | None:
    """The index by its definition: of all spans that a job could be given, the least cost per expected end."""
    longer = [t - ran for t in times if t > ran]
    spans = sorted(longer)
    costs = [sum(min(t, span) for t in [*longer, float("inf")]) / sum(t <= span for t in longer) for span in spans]
    return min(costs, default=None)


@pytest.mark.parametrize(
    "times",
    [
        [5.0],
        [10.0, 10.0, 10.0],
        [1.0, 2.0, 4.0, 8.0, 16.0, 1000.0],
        [47.0] * 20 + [27_431.0] * 3 + [910.0] * 30,
        [float(7 * i % 101) for i in range(1, 90)],
    ],
)
def test_the_index_is_what_its_definition_says(times: list[float]) -> None:
    learned = RunTimes()
    for ran in times:
        learned.learn(ran)
    learned._make_index()
    for age in [0.0, 0.5, *times, *(t + 0.25 for t in times), 2000.0]:
        expected = least(times, age)
        found = learned.index(age)
        assert (found is None) == (expected is None), age
        assert found is None or found == pytest.approx(expected)


def test_equal_jobs_are_ordered_by_what_is_left() -> None:
    durations = known(*[100.0] * 150)
    index = [durations.index("ann", "lab", "train", 4, ran) for ran in (0.0, 30.0, 90.0)]
    assert index == pytest.approx([100, 70, 10], rel=0.01)


def test_with_heavy_tails_who_has_run_long_goes_behind() -> None:
    durations = known(*[60.0] * 90, *[100_000.0] * 10)
    young, old = (durations.index("ann", "lab", "train", 4, ran) for ran in (0.0, 61.0))
    assert young < 100 < 50_000 < old


def test_of_an_unknown_job_it_is_supposed_that_it_needs_as_long_again() -> None:
    durations = Durations()
    assert durations.index("ann", "lab", "train", 4, 0.0) == UNKNOWN
    assert durations.index("ann", "lab", "train", 4, 7200.0) == 7200.0
    assert known(10, 20, 30).index("ann", "lab", "train", 4, 7200.0) == 7200.0


def test_one_similar_job_weighs_little() -> None:
    one, many = known(100.0), known(*[100.0] * 50)
    assert one.index("ann", "lab", "train", 4, 0.0) == 200.0
    assert many.index("ann", "lab", "train", 4, 0.0) == pytest.approx(102.0, rel=0.01)


def test_the_version_tells_when_ranks_may_have_changed() -> None:
    durations = Durations()
    seen = {durations.version}
    for count in range(1, 400):
        before = [durations.index("ann", "lab", "train", 4, ran) for ran in (0.0, 40.0, 900.0)]
        version = durations.version
        more(durations, float(count * 37 % 1000))
        after = [durations.index("ann", "lab", "train", 4, ran) for ran in (0.0, 40.0, 900.0)]
        assert before == after or durations.version != version
        seen.add(durations.version)
    assert 20 < len(seen) < 100  # at every job at first, then ever more rarely


def test_what_a_class_forgets_is_what_ended_first() -> None:
    times = RunTimes()
    for ran in [1000.0] * KEPT + [10.0] * KEPT:
        times.learn(ran)
    assert (len(times.ordered), list(times.longer_than(10.0))) == (KEPT, [])


def test_the_index_follows_what_is_new_however_much_has_been_learned_before() -> None:
    times = RunTimes()
    for ran in [1000.0] * (20 * KEPT) + [10.0] * KEPT:
        times.learn(ran)
    assert times.index(0.0) == pytest.approx(10.0, rel=0.1)


def test_of_what_was_told_since_somebody_asked_last_the_latest_count_as_after_a_restart() -> None:
    durations = more(known(*[10.0] * 10, name="old"), *[20.0] * REMEMBERED, name="new")
    assert asked(durations, name="new") is not None
    assert (asked(durations, name="old") or asked(durations)).basis == f"{KEPT} jobs by ann on 4 devices"  # type: ignore[union-attr]


def test_classes_that_go_on_growing_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CLASSES", 12)
    durations = known(10.0, 10.0, 10.0)
    for number in range(20):
        more(durations, 20.0, user=f"other {number}", name=f"{chr(97 + number)}")
        more(durations, 10.0)
    found = asked(durations)
    assert found is not None and found.samples == 23
