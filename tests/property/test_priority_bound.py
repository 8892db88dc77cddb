"""Nobody starves under the multifactor priority: what may go before a job became eligible within a stated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpusched.model.changes import AccountUsage
from gpusched.model.clock import Instant
from gpusched.model.device import Device
from gpusched.model.job import Job, JobSpec, Owner, Request
from gpusched.model.policy import DAY, MOST_NICE, FairShare, PolicyRules, Weights
from gpusched.model.rules import Rules
from gpusched.model.state import JobState
from gpusched.policy.priority import Shifts, factors, rank
from gpusched.policy.view import View

T = 1_800_000_000.0
GPUS = 8
weights = st.builds(
    Weights,
    age=st.floats(1, 1e4),
    age_days=st.floats(0.1, 30),
    fair_share=st.floats(0, 1e4),
    size=st.floats(0, 1e3),
    nice=st.floats(0, 2),
)
nices = st.integers(-MOST_NICE, MOST_NICE)
accounts = st.sampled_from(["ann", "bob", "eve"])
usage = st.lists(st.floats(0, 1e9), min_size=3, max_size=3)


def a_view(chosen: Weights, used: list[float]) -> View:
    fair = FairShare(shares=(("ann", 5.0), ("eve", 0.1)))
    view = View(Rules(policy=PolicyRules(weights=chosen, fair_share=fair)))
    for index in range(GPUS):
        view.put_device(Device(f"GPU-{index}", index, "x", 1024))
    view.ledger.load([AccountUsage(a, u, T) for a, u in zip(("ann", "bob", "eve"), used, strict=True)], T)
    return view


def a_job(number: int, account: str, nice: int, gpus: int, eligible_at: float) -> Job:
    spec = JobSpec(("true",), "/", nice=nice, request=Request(gpus))
    return Job(number, Owner(1, 1, account), spec, JobState.PENDING, eligible_at, eligible_at=eligible_at)


@given(
    chosen=weights, used=usage, first=st.tuples(accounts, nices, st.integers(0, GPUS)),
    second=st.tuples(accounts, nices, st.integers(0, GPUS)), later=st.floats(1.0001, 10),
)  # fmt: skip
def test_a_job_is_never_passed_by_one_that_came_later_than_the_bound(
    chosen: Weights, used: list[float], first: tuple[str, int, int], second: tuple[str, int, int], later: float
) -> None:
    view = a_view(chosen, used)
    most = chosen.fair_share + chosen.size + chosen.nice * 2 * MOST_NICE
    bound = most / chosen.age * chosen.age_days * DAY
    old = a_job(1, *first, eligible_at=T)
    new = a_job(2, *second, eligible_at=T + later * bound + 1.0)
    now = Instant(T + 20 * bound + 10.0, 0.0)
    assert factors(view, old, now).total > factors(view, new, now).total
    shift = Shifts(view, now)
    assert rank(view, old) + shift[old.account] < rank(view, new) + shift[new.account]


@given(chosen=weights, used=usage, one=st.tuples(accounts, nices, st.integers(0, GPUS)),
       other=st.tuples(accounts, nices, st.integers(0, GPUS)), gap=st.floats(0, 30 * DAY))  # fmt: skip
def test_the_order_that_the_policies_go_by_is_that_of_the_numbers_that_are_shown(
    chosen: Weights, used: list[float], one: tuple[str, int, int], other: tuple[str, int, int], gap: float
) -> None:
    view = a_view(chosen, used)
    now = Instant(T + 31 * DAY, 0.0)
    a, b = a_job(1, *one, eligible_at=T), a_job(2, *other, eligible_at=T + gap)
    shift = Shifts(view, now)
    shown = factors(view, a, now).total - factors(view, b, now).total
    used_by_policy = (rank(view, b) + shift[b.account]) - (rank(view, a) + shift[a.account])
    assert abs(shown - used_by_policy) < 1e-3 + 1e-6 * chosen.age * T / (chosen.age_days * DAY) * 1e-3
    for job in (a, b):
        found = factors(view, job, now)
        assert 0.0 < found.fair_share.value <= 1.0 and 0.0 <= found.size.value <= 1.0 and found.age.value >= 0.0
