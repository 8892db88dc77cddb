"""Rules that a user can choose, drawn at random, and workloads of every kind of job, for properties in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from builders import World
from hypothesis import strategies as st
from playing import Arrival, Other, Play
from things import GIB, PEOPLE, Gpu

from gpusched.model.events import Event, ReservationRequested
from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import FairShare, Placement, PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules
from gpusched.simulator.settings import published_rules

COST = 20.0
PRICE = PreemptCost(COST, COST, COST)
names = st.sampled_from(PolicyName)


@st.composite
def daemon_settings(draw: st.DrawFn, name: st.SearchStrategy[PolicyName] = names) -> Rules:
    """What a configuration of the daemon can say."""
    policy = PolicyRules(
        name=draw(name), placement=draw(st.sampled_from(Placement)), cost=PRICE, turn=900.0,
        tick=draw(st.sampled_from((60.0, 60.0, 7.0, 0.0))), min_run=draw(st.sampled_from((120.0, 120.0, 0.0))),
        patience=draw(st.sampled_from((None, 500.0, 6000.0))), resize_interval=draw(st.sampled_from((300.0, 0.0))),
        las_limits=draw(st.sampled_from(((600.0,), (600.0, 4000.0)))), las_slices=draw(st.booleans()),
        running_first=draw(st.booleans()), between_accounts=draw(st.booleans()), migrate=draw(st.booleans()),
        fair_share=FairShare(entry_hours=draw(st.sampled_from((0.25, 0.0)))),
    )  # fmt: skip
    return replace(
        Rules.default(), policy=policy, limits=draw(limits), cpu_jobs=2, bypass_limit=draw(st.sampled_from((3, 1)))
    ).check()


@st.composite
def published_settings(draw: st.DrawFn) -> Rules:
    """What `gpusched simulate --semantics published` can be told."""
    return published_rules(
        draw(names), placement=draw(st.sampled_from(Placement)), cost=PRICE, tick=draw(st.sampled_from((0.0, 60.0))),
        las_limits=draw(st.sampled_from(((600.0,), (600.0, 4000.0)))), running_first=draw(st.booleans()),
        migrate=draw(st.booleans()),
    )  # fmt: skip


limits = st.one_of(
    st.just(LimitRules()),
    st.just(LimitRules()),
    st.builds(
        lambda user, high, quota: LimitRules(user={"*": user}, qos={"high": high}, quota=quota),
        st.sampled_from((Limits(max_devices=4), Limits(max_running=2))),
        st.sampled_from((Limits(), Limits(max_devices=3), Limits(max_running_per_user=1))),
        st.sampled_from(({}, {"*": 2.0}, {"theory": 1.0, "vision": 3.0}, {"ann": 2.0, "bob": 0.0})),
    ),
)


# ---- jobs -----------------------------------------------------------------------------------------------------------

lasts = st.sampled_from((5.0, 61.0, 130.0, 700.0, 700.0, 1300.0, 4200.0))
gaps = st.sampled_from((0.0, 0.0, 3.0, 61.0, 240.0, 700.0))
levels = st.sampled_from(("low", "normal", "normal", "high"))
accounts = st.sampled_from(("theory", "vision"))
gangs = st.sampled_from((1, 1, 1, 2, 2, 3, 4, 6))
whole = st.fixed_dictionaries(
    {"gpus": gangs},
    optional={
        "qos": levels, "nice": st.sampled_from((50, 2000)), "array": st.sampled_from(("0-3%2", "0-2")),
        "account": accounts,
    },
)  # fmt: skip
sharing = st.fixed_dictionaries(
    {"gpus": st.sampled_from((1, 1, 2)), "shared": st.just(True), "gpu_mem_mib": st.sampled_from((4 * GIB, 13 * GIB))},
    optional={"qos": levels, "account": accounts},
)
elastic = st.fixed_dictionaries(
    {"gpus": st.sampled_from((1, 2)), "gpus_max": st.sampled_from((3, 6))},
    optional={"qos": levels, "account": accounts},
)
of_a_kind = st.fixed_dictionaries({"gpus": st.integers(1, 2), "gpu_type": st.just("h100")})
reserved = st.fixed_dictionaries({"gpus": st.sampled_from((1, 1, 2)), "reservation": st.just("paper")})
none = st.just({"gpus": 0})
kinds_of_jobs = st.one_of(whole, whole, sharing, elastic, none)
window = st.tuples(
    st.sampled_from((0.0, 30.0, 300.0)), st.sampled_from((0.0, 90.0, 1000.0)), st.sampled_from((200.0, 3000.0)),
    st.integers(1, 3),
)  # fmt: skip
foreign_use = st.tuples(st.sampled_from((30.0, 200.0, 800.0)), st.integers(0, 5), st.sampled_from((0, 3 * GIB)))


@dataclass(frozen=True)
class Workload:
    """What happens: jobs that arrive, on which devices, and what an administrator reserves."""

    arrivals: tuple[Arrival, ...]
    groups: tuple[int, ...]  # devices in each
    leaving: float  # seconds between the request to leave and the exit
    mixed: bool = False  # devices of two kinds
    windows: tuple[tuple[float, float, float, int], ...] = ()  # announced at, begins after, lasts, devices
    foreign: tuple[tuple[float, int, int], ...] = ()  # from when on, device, MiB that others use

    @property
    def gpus(self) -> list[Gpu]:
        groups = [group for group, size in enumerate(self.groups) for _ in range(size)]
        large = {"name": "NVIDIA H100 80GB HBM3", "total_mib": 80 * GIB}
        last = len(self.groups) - 1
        return [
            Gpu(i, group=f"group {group}", **(large if self.mixed and group == last else {}))  # type: ignore[arg-type]
            for i, group in enumerate(groups)
        ]

    @property
    def others(self) -> list[Other]:
        windows = [(at, _reserving(*window)) for at, *window in self.windows]
        return windows + [(at, _foreign(index, mib)) for at, index, mib in self.foreign]

    def play(self, rules: Rules, **more: Any) -> Play:
        return Play(
            self.gpus, rules, self.arrivals, cost=COST, leaving=self.leaving, others=self.others,
            rate=lambda job, devices: 1.0 + 0.7 * max(0, devices - max(1, job.spec.request.gpus)), **more,
        )  # fmt: skip


def _reserving(begins: float, lasts: float, count: int) -> Callable[[World], Event]:
    return lambda world: ReservationRequested(
        "paper", PEOPLE["root"], world.now.wall + begins, lasts, count=count, users=("ann",)
    )


def _foreign(index: int, mib: int) -> Callable[[World], Event]:
    def happens(world: World) -> Event:
        world.gpus[index].foreign_mib = mib
        return world.reading()

    return happens


# what is told of a job that lasts so many seconds: nothing, the truth, a limit, what is wrong
KNOWN: tuple[Callable[[float], dict[str, float]], ...] = (
    lambda seconds: {},
    lambda seconds: {"expected": seconds},
    lambda seconds: {"time_limit": seconds * 1.5 + 60.0},
    lambda seconds: {"expected": seconds * 0.5},
)


@st.composite
def workloads(draw: st.DrawFn, most: int = 8) -> Workload:
    mixed, reserves = draw(st.integers(0, 3)) == 0, draw(st.integers(0, 2)) == 0
    kinds = [whole, whole, whole, sharing, none, elastic, *([of_a_kind] * mixed), *([reserved] * reserves)]
    arrivals, at = [], 0.0
    for _ in range(draw(st.integers(3, most))):
        at += draw(gaps)
        seconds = draw(lasts)
        wanted = dict(draw(st.one_of(*kinds)))
        wanted |= draw(st.sampled_from(KNOWN))(seconds)
        arrivals.append(Arrival(at, seconds, draw(st.sampled_from(("ann", "ann", "bob"))), wanted))
    windows = (draw(window),) if reserves else ()
    foreign = draw(st.lists(foreign_use, max_size=3)) if draw(st.integers(0, 3)) == 0 else []
    foreign += [(9000.0, index, 0) for _, index, _ in foreign]  # they leave at last
    groups = draw(st.sampled_from(((4, 4), (6,), (3, 3), (2, 2, 2), (2, 4))))
    return Workload(tuple(arrivals), groups, draw(st.sampled_from((0.0, 0.0, 7.0))), mixed, windows, tuple(foreign))
