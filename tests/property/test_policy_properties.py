"""What holds under every policy, in random workloads in virtual time.

Devices are never over-allocated and gangs are whole (engine/invariants.py after every step, tests/judging.py before
every decision), nobody leaves for a job that stands behind it, nobody who could be spared, and everything ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from judging import Judge
from playing import Arrival, Play
from profiles import PROFILE
from things import GIB, Gpu
from workloads import KNOWN

from gpusched.model.policy import Placement, PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules
from gpusched.simulator.settings import published_rules

COST = 20.0
FEW = settings(PROFILE, max_examples=max(20, PROFILE.max_examples // 6))
PRICE = PreemptCost(COST, COST, COST)
SMALL = PolicyRules(tick=60.0, min_run=120.0, patience=6000.0, turn=900.0, las_limits=(600.0, 4000.0), cost=PRICE)


def daemon(name: str, **policy: Any) -> Rules:
    rules = replace(Rules.default(), bypass_limit=3, policy=replace(SMALL, name=PolicyName(name), **policy))
    return rules.check()


def published(name: str, **policy: Any) -> Rules:
    return published_rules(PolicyName(name), **{"las_limits": (600.0, 4000.0), "cost": PRICE, **policy})


RULES = {
    **{str(name): daemon(name) for name in PolicyName},
    "las in slices": daemon("las", las_slices=True),
    "las, running jobs have no right": daemon("las", running_first=False),
    "las without accounts": daemon("las", between_accounts=False),
    "srtf at every event": daemon("srtf", tick=0.0, min_run=0.0),
    "las packed": daemon("las", placement=Placement.PACK),
    "srsf by count": daemon("srsf", calm=False),
    "las by count": daemon("las", calm=False, between_accounts=False),
    "backfill packed": daemon("backfill", placement=Placement.PACK),
    **{f"published {name}": published(name) for name in ("srtf", "srsf", "las", "predicted", "fit-first", "sjf")},
    "published las, running first, on a grid": published("las", running_first=True, tick=60.0),
    "srtf that moves jobs": published("srtf", migrate=True),
    "srsf that moves jobs": daemon("srsf", migrate=True, placement=Placement.PACK, tick=0.0, min_run=0.0),
}
BY_COUNT = [name for name, rules in RULES.items() if not rules.policy.calm]


@dataclass(frozen=True)
class Case:
    arrivals: tuple[Arrival, ...]
    groups: tuple[int, ...]  # devices in each
    leaving: float
    mixed: bool  # devices of two kinds

    @property
    def gpus(self) -> list[Gpu]:
        groups = [group for group, size in enumerate(self.groups) for _ in range(size)]
        large = {"name": "NVIDIA H100 80GB HBM3", "total_mib": 80 * GIB}
        last = len(self.groups) - 1
        return [
            Gpu(i, group=f"group {group}", **(large if self.mixed and group == last else {}))  # type: ignore[arg-type]
            for i, group in enumerate(groups)
        ]


lasts = st.sampled_from((5.0, 61.0, 130.0, 700.0, 700.0, 1300.0, 4200.0))
gaps = st.sampled_from((0.0, 0.0, 3.0, 61.0, 240.0, 700.0))
whole = st.fixed_dictionaries(
    {"gpus": st.sampled_from((1, 1, 1, 2, 2, 3, 4, 6))},
    optional={
        "qos": st.sampled_from(("low", "normal", "high")), "nice": st.sampled_from((50, 2000)),
        "array": st.sampled_from(("0-3%2", "0-2")), "account": st.sampled_from(("theory", "vision")),
    },
)  # fmt: skip
sharing = st.fixed_dictionaries(
    {"gpus": st.sampled_from((1, 1, 2)), "shared": st.just(True), "gpu_mem_mib": st.sampled_from((4 * GIB, 13 * GIB))},
    optional={"qos": st.sampled_from(("low", "high"))},
)
of_a_kind = st.fixed_dictionaries({"gpus": st.integers(1, 2), "gpu_type": st.just("h100")})
none = st.just({"gpus": 0})


@st.composite
def cases(draw: st.DrawFn, *, simple: bool = False, most: int = 9) -> Case:
    """simple: only whole devices of one kind and of one level."""
    mixed = not simple and draw(st.integers(0, 3)) == 0
    kinds = [whole, whole, whole] if simple else [whole, whole, whole, sharing, none, *([of_a_kind] * mixed)]
    arrivals, at = [], 0.0
    for _ in range(draw(st.integers(3, most))):
        at += draw(gaps)
        seconds = draw(lasts)
        wanted = dict(draw(st.one_of(*kinds)))
        wanted |= draw(st.sampled_from(KNOWN))(seconds)
        if simple:
            wanted = {name: value for name, value in wanted.items() if name in ("gpus", "expected", "nice")}
        by = "ann" if simple else draw(st.sampled_from(("ann", "ann", "bob")))
        arrivals.append(Arrival(at, seconds, by, wanted))
    groups = draw(st.sampled_from(((4, 4), (6,), (3, 3), (2, 2, 2), (2, 4))))
    return Case(tuple(arrivals), groups, draw(st.sampled_from((0.0, 0.0, 7.0))), mixed)


def played(rules: Rules, case: Case, judge: Judge | None = None, checked: bool = True) -> Play:
    play = Play(case.gpus, rules, case.arrivals, cost=COST, leaving=case.leaving, watch=judge, checked=checked)
    play.run(most=4000)
    return play


@pytest.mark.parametrize("name", RULES)
@given(st.data())
@FEW
def test_decisions_are_lawful_and_everything_ends(name: str, data: st.DataObject) -> None:
    case, judge = data.draw(cases()), Judge()
    play = played(RULES[name], case, judge)
    assert not play.left, f"not ended: {sorted(play.left)}"
    event(f"victims: {judge.seen['victims'] > 0}")
    for job_id in play.ended:
        job = play.world.job(job_id)
        moves = _most_moves(RULES[name], play, job_id)
        assert job.preemptions <= moves, f"{job.key} was asked to leave {job.preemptions} times"


def _most_moves(rules: Rules, play: Play, job_id: int) -> float:
    """How often it can have been asked to leave: no livelock. By the calm rules it runs for a while each time."""
    if not rules.policy.name.preemptive:
        return len(play.arrived)  # a job of a higher level asks once
    if rules.policy.calm and rules.policy.min_run:
        return play.world.job(job_id).ran / rules.policy.min_run + 1
    return 6 * len(play.arrived)


@pytest.mark.parametrize("name", [name for name in RULES if name not in BY_COUNT])
@given(st.data())
@FEW
def test_no_device_is_idle_that_the_first_waiting_job_could_have(name: str, data: st.DataObject) -> None:
    case = data.draw(cases(simple=True, most=7))
    rules = RULES[name]
    play = Play(case.gpus, rules, case.arrivals, cost=COST, leaving=case.leaving, checked=False)
    while play._next() < float("inf"):
        play.step()
        waiting = sorted(play.view.waiting(), key=play.view.order)
        if waiting and not waiting[0].earmark and not play.view.claimants:
            open_now = sum(slot.open for slot in play.view.slots.values())
            packs = rules.policy.placement is Placement.PACK
            assert packs or open_now < waiting[0].spec.request.gpus, f"{waiting[0].key} could start"
