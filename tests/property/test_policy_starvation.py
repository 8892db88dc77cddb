"""Nobody starves: a bound on the wait of a job for each policy, held against an endless stream of shorter ones.

The bounds hold within one level of QoS: a stream of a higher level can keep a lower one waiting for ever, by design.
S: the longest that a job of the stream runs; P: `patience`. In words, after the last job that was past its patience
before it has started:

- fifo: nobody who was submitted later and wants the same devices starts before.
- sjf: P + S. Past its patience it is the head of the line, and the head blocks.
- backfill with known durations: P + S, the reservation of the head; the multifactor priority (no upper end for age)
  usually makes it the head much earlier.
- backfill without them, fit-first: P + (bypass_limit + 1) · S: each job that goes past is counted, then its devices
  are kept.
- srtf, srsf, las, predicted, by the calm rules: P + S and what being moved costs; nobody starts behind it meanwhile.
  Where jobs run for longer than that, they are asked to leave: P + min_run + tick, one grace period, and, as often as
  there are devices, what their moves cost (as long as that is not paid for, it is about to have them anyway).
- las between accounts: a gang within its account's part does not wait for P but for the same without P; a larger one
  first waits for the turn of its account.

Once started under a policy that preempts, it runs for `min_run` at least before it can be asked to leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from playing import Arrival, Play
from profiles import PROFILE
from things import Gpu

from gpusched.model.policy import FairShare, Placement, PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules

DEVICES = 4
P, MIN_RUN, TICK, COST, BYPASS, TURN = 900.0, 240.0, 60.0, 30.0, 6, 1200.0
SHORT = settings(PROFILE, max_examples=max(25, PROFILE.max_examples // 4))
SLICED = [name for name in PolicyName if name.preemptive]


@dataclass(frozen=True)
class Case:
    gang: int
    lasts: float  # the job that must not starve
    short: tuple[float, ...]  # the stream, over and over
    sizes: tuple[int, ...]
    known: bool
    groups: int
    leaving: float
    placement: Placement

    @property
    def longest(self) -> float:
        return max(self.short)


cases = st.builds(
    Case,
    gang=st.integers(1, DEVICES),
    lasts=st.sampled_from((5000.0, 50_000.0)),
    short=st.lists(st.sampled_from((47.0, 83.0, 131.0, 230.0, 310.0)), min_size=2, max_size=5).map(tuple),
    sizes=st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    known=st.booleans(),
    groups=st.sampled_from((1, 2, 4)),
    leaving=st.sampled_from((0.0, 8.0)),
    placement=st.sampled_from(Placement),
)


def rules(name: PolicyName, case: Case, **policy: Any) -> Rules:
    usual = PolicyRules(
        name=name, patience=P, min_run=MIN_RUN, tick=TICK, cost=PreemptCost(COST, COST, COST),
        las_limits=(600.0, 5000.0), placement=case.placement,
    )  # fmt: skip
    return replace(Rules.default(), bypass_limit=BYPASS, policy=replace(usual, **policy)).check()


class Stream:
    """A machine that never runs out of work: so many short jobs always wait besides the one that must not starve."""

    def __init__(self, given: Rules, case: Case, by: Sequence[str] = ("ann",), deep: int = 3) -> None:
        gpus = [Gpu(i, group=f"group {i * case.groups // DEVICES}") for i in range(DEVICES)]
        self.play = Play(gpus, given, (), cost=COST, leaving=case.leaving, checked=False)
        self.case, self.by, self.deep = case, by, deep
        self.submitted = 0
        self.victim = 0

    def fill(self) -> None:
        play = self.play
        while sum(job_id not in play.view.live for job_id in play.left) < self.deep + (self.victim in play.left):
            self.one_more()

    def one_more(self) -> None:
        place, self.submitted = self.submitted, self.submitted + 1
        lasts = self.case.short[place % len(self.case.short)] - 1.7 * (place % 7)  # they hardly ever end together
        self._submit(lasts, self.case.sizes[place % len(self.case.sizes)], by=self.by[place % len(self.by)])

    def wait_of_the_other(self, most: float, by: str = "ann") -> float:
        """Seconds that it waits. Raises AssertionError if that is more than `most`."""
        for _ in range(DEVICES):
            self.one_more()
        self.fill()
        self.play.run(until=17.0)
        self.victim = self._submit(self.case.lasts, self.case.gang, by=by)
        while self.victim not in self.play.first:
            waited = self.play.now - self.play.arrived[self.victim]
            assert waited <= most + 1e-3, f"it starves: {waited} s; {self.play.view.live}"
            self.fill()
            self.play.step()
        return self.play.waited(self.victim)

    def _submit(self, lasts: float, gpus: int, by: str) -> int:
        known = {"expected": lasts} if self.case.known else {}
        if self.case.placement is Placement.PACK:
            gpus = min(gpus, DEVICES // self.case.groups) if gpus < DEVICES else gpus
        return self.play.submit(lasts, gpus=gpus, by=by, **known)


@given(cases)
@SHORT
def test_under_fifo_nobody_who_comes_later_starts_before(case: Case) -> None:
    stream = Stream(rules(PolicyName.FIFO, case), case)
    ahead = stream.wait_of_the_other(10 * case.longest)
    first = stream.play.first
    assert all(job_id < stream.victim for job_id in first if first[job_id] < ahead)


@given(cases)
@SHORT
def test_under_sjf_the_longest_job_waits_for_its_patience_and_those_who_run(case: Case) -> None:
    Stream(rules(PolicyName.SJF, case), case).wait_of_the_other(P + case.longest)


@given(cases)
@SHORT
def test_under_backfill_known_durations_make_a_reservation(case: Case) -> None:
    known = replace(case, known=True)
    Stream(rules(PolicyName.BACKFILL, known), known).wait_of_the_other(P + case.longest)


@given(cases, st.sampled_from((PolicyName.BACKFILL, PolicyName.FIT_FIRST)))
@SHORT
def test_without_durations_the_bypass_limit_keeps_the_devices(case: Case, name: PolicyName) -> None:
    unknown = replace(case, known=False)
    Stream(rules(name, unknown), unknown).wait_of_the_other(P + (BYPASS + 1) * case.longest)


@given(cases, st.sampled_from(SLICED), st.booleans())
@SHORT
def test_who_is_past_its_patience_waits_for_short_jobs_only_once(case: Case, name: PolicyName, first: bool) -> None:
    """The jobs of the stream are often too young to be asked to leave."""
    stream = Stream(rules(name, case, running_first=first), case)
    waited = stream.wait_of_the_other(P + case.longest + COST + case.leaving)
    event(f"{name}: past its patience {waited >= P}")


@given(cases, st.sampled_from(SLICED))
@SHORT
def test_without_calm_rules_it_waits_no_longer_than_to_the_next_tick(case: Case, name: PolicyName) -> None:
    packed = replace(case, placement=Placement.COUNT)
    Stream(rules(name, packed, calm=False), packed).wait_of_the_other(P + TICK + case.leaving)


@given(cases, st.sampled_from(SLICED))
@SHORT
def test_without_calm_rules_groups_may_cost_the_rest_of_a_job(case: Case, name: PolicyName) -> None:
    packed = replace(case, placement=Placement.PACK)
    most = P + TICK + case.leaving + case.longest + COST
    Stream(rules(name, packed, calm=False), packed).wait_of_the_other(most)


@given(cases, st.sampled_from(SLICED), st.booleans())
@SHORT
def test_long_jobs_are_asked_to_leave_for_it(case: Case, name: PolicyName, first: bool) -> None:
    """Everything that runs would go on for days."""
    long = replace(case, short=tuple(1000 * s for s in case.short), lasts=1e7, placement=Placement.PREFER)
    stream = Stream(rules(name, long, running_first=first), long)
    most = P + MIN_RUN + TICK + case.leaving + DEVICES * (COST * DEVICES / case.gang + TICK)
    stream.wait_of_the_other(most)


@given(cases)
@SHORT
def test_a_gang_within_the_part_of_its_account_does_not_need_patience(case: Case) -> None:
    """Bob's stream is endless, and its jobs are too young to be asked to leave."""
    half = replace(case, gang=min(case.gang, DEVICES // 2), placement=Placement.PREFER)
    stream = Stream(rules(PolicyName.LAS, half, patience=None), half, by=["bob"])
    stream.wait_of_the_other(case.longest + COST + case.leaving + TICK)


@given(cases)
@SHORT
def test_past_its_patience_a_gang_goes_before_the_small_jobs_of_its_own_account(case: Case) -> None:
    """Two streams, and what is ann's part is held by her own small jobs."""
    half = replace(case, gang=DEVICES // 2, sizes=(1,), placement=Placement.PREFER)
    stream = Stream(rules(PolicyName.LAS, half), half, by=["ann", "bob"])
    stream.wait_of_the_other(P + 2 * case.longest + COST + case.leaving + TICK)


@given(cases)
@SHORT
def test_a_gang_larger_than_the_part_of_its_account_gets_its_turn(case: Case) -> None:
    whole = replace(case, gang=DEVICES, placement=Placement.PREFER)
    fair = FairShare(entry_hours=0)
    stream = Stream(rules(PolicyName.LAS, whole, patience=None, turn=TURN, fair_share=fair), whole, by=["bob"])
    stream.wait_of_the_other(2 * TURN + case.longest + COST + case.leaving + TICK)
    assert stream.play.waited(stream.victim) > TURN / 2, "it is bob's turn first"


@given(cases, st.sampled_from(SLICED))
@SHORT
def test_once_started_it_runs_for_the_minimum_time(case: Case, name: PolicyName) -> None:
    stream = Stream(rules(name, case), case)
    stream.wait_of_the_other(P + case.longest + COST + case.leaving)
    play, view, began = stream.play, stream.play.view, stream.play.now
    while stream.victim in view.live.keys() - view.stopping and play.now < began + 2 * MIN_RUN:
        stream.fill()
        play.step()
    assert play.now >= began + MIN_RUN - 1e-3


@given(cases)
@SHORT
def test_a_backlog_past_its_patience_does_not_shut_out_other_accounts(case: Case) -> None:
    """Whatever ann has waiting, and however long, bob comes to his part."""
    rule = rules(PolicyName.LAS, case, placement=Placement.PREFER, patience=60.0)
    play = Play(DEVICES, rule, [Arrival(0, s * 10) for s in case.short * 20], cost=COST, checked=False)
    play.run(until=3 * P)
    bobs = [play.submit(20_000.0, by="bob") for _ in range(DEVICES // 2)]
    play.run(until=3 * P + MIN_RUN + 2 * TICK + COST * DEVICES)
    assert all(job in play.first for job in bobs), play.first


@given(cases, st.sampled_from((PolicyName.FIFO, PolicyName.SJF, *SLICED)), st.booleans())
@SHORT
def test_of_those_past_their_patience_who_has_waited_longest_is_first(case: Case, name: PolicyName, calm: bool) -> None:
    """A backlog so deep that everybody's patience is over long before a device is free. Devices are kept for one job
    at a time: when it starts, one that came later may take what is left before they are kept for the next."""
    alike = replace(case, placement=Placement.COUNT)
    stream = Stream(rules(name, alike, patience=30.0, calm=calm), alike, deep=20)
    stream.wait_of_the_other(30 * case.longest)
    play, victim = stream.play, stream.victim
    since = play.arrived[victim] + 30.0
    meanwhile = [job for job, first in play.first.items() if since < first < play.first[victim]]
    later = [job for job in meanwhile if play.arrived[job] > since]
    earlier = [job for job in meanwhile if play.arrived[job] <= since]
    assert len(later) <= (len(earlier) if name.preemptive else 0), f"{later} came later and started before"
    event(f"{len(earlier)} earlier, {len(later)} later")
