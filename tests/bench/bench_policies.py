"""What deciding costs a daemon under every policy: cycle by cycle, and per event as the queue grows. By hand:

    python tests/bench/bench_policies.py [--policies fifo,las,…] [--events 200] [--longest 100000] [--plot FILE.png]

No store, no processes: only Engine.handle, in a world where all devices are taken and so many jobs of thirty users
wait, gangs of 1 to 8 devices on machines of 8, in three QoS levels, half of them with time limits. Three things happen
in turns: a running job ends (and others start on its devices, which is told in a second batch), a job is submitted,
and every sixth time the engine is woken at a moment at which the policy may ask running jobs to leave. Figures are
processor milliseconds of this run on this machine, for one call of Engine.handle.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpusched.engine.engine import Engine
from gpusched.model.actions import Ask, Asked, Launch
from gpusched.model.changes import Step
from gpusched.model.clock import Instant
from gpusched.model.device import DeviceReading, Occupancy
from gpusched.model.events import AttemptExited, AttemptStarted, DevicesSampled, Event, JobSubmitted, Woke
from gpusched.model.job import AttemptKey, Caller, JobSpec, Request
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import Outcome, OutcomeKind, Saved

SIZES = ((1_000, 64, 10.0), (10_000, 1_000, 100.0))  # waiting jobs, devices, milliseconds to stay under
GROWING = (1_000, 3_000, 10_000, 30_000, 100_000)  # waiting jobs, on as many devices as the last size has
DONE = Outcome(OutcomeKind.EXITED, code=0)
SAVED = Outcome(OutcomeKind.EXITED, code=85, saved=Saved("checkpoint"))
PER_MACHINE, USERS, TICK, FEW = 8, 30, 60.0, 25


@dataclass
class Bench:
    """An engine whose queue keeps its length, and how long each of its steps took."""

    policy: PolicyName
    waiting: int
    devices: int
    chance: random.Random = field(default_factory=lambda: random.Random(4))
    now: Instant = field(default_factory=lambda: Instant(1_000_000.0, 1_000.0))
    took: dict[str, list[float]] = field(default_factory=dict)  # milliseconds, by what had happened

    def __post_init__(self) -> None:
        rules = Rules(policy=PolicyRules(name=self.policy, tick=TICK))
        self.callers = [Caller(1000 + user, 1000, f"user{user}") for user in range(USERS)]
        self.engine = Engine(rules, "boot")
        readings = [
            DeviceReading(f"GPU-{i}", i, "NVIDIA H100 80GB HBM3", 81_920, 0, group=f"machine {i // PER_MACHINE}")
            for i in range(self.devices)
        ]
        self.engine.handle([DevicesSampled(tuple(Occupancy(reading) for reading in readings))], self.now)
        while self.engine.view.open_devices > self.devices // 100:
            self.handle("filling", *[self.submission() for _ in range(self.devices // 4)])
        missing = self.waiting - len(self.engine.view.jobs) + len(self.engine.view.live)
        self.handle("filling", *[self.submission() for _ in range(missing)])

    def submission(self) -> JobSubmitted:
        chance = self.chance
        hours = chance.expovariate(0.3)
        spec = JobSpec(
            ("train",), "/", f"run-{chance.randrange(200)}", Request(chance.choices((1, 2, 4, 8), (60, 15, 15, 10))[0]),
            qos=chance.choices(("low", "normal", "high"), (15, 80, 5))[0],
            time_limit=round(hours * 3600) + 60.0 if chance.random() < 0.5 else None,
        )  # fmt: skip
        return JobSubmitted(spec, chance.choice(self.callers))

    def handle(self, what: str, *events: Event) -> Step:
        """One batch and what follows from it at the same moment: attempts start at once, and leave at once."""
        began = time.process_time()
        step = self.engine.handle(events, self.now)
        self.took.setdefault(what, []).append((time.process_time() - began) * 1000)
        followed: list[Event] = []
        for action in step.actions:
            if isinstance(action, Launch):
                followed.append(AttemptStarted(action.attempt, 1, watching=True))
            elif isinstance(action, Ask) and action.what is Asked.STOP:
                followed.append(self.end(action.attempt, SAVED))
        if followed:
            self.handle("starts and stops are told", *followed)
        return step

    def end(self, key: AttemptKey, outcome: Outcome) -> AttemptExited:
        return AttemptExited(key, outcome, self.engine.view.live[key.job_id].uuids)

    def run(self, events: int) -> None:
        self.took.clear()
        for number in range(events):
            self.now = self.now.later(7.0)
            live = self.engine.view.live
            key = live[self.chance.choice(list(live))].key
            self.handle("a job ends", self.end(key, DONE))
            while len(self.engine.view.jobs) - len(live) - len(self.engine.state.ended) < self.waiting:
                self.handle("a job is submitted", self.submission())
            if number % 6 == 5:
                self.now = self.now.later(TICK - self.now.boot % TICK)
                self.handle("woken at the tick", Woke())


def measured(policy: PolicyName, waiting: int, devices: int, events: int) -> dict[str, list[float]]:
    bench = Bench(policy, waiting, devices)
    gc.collect()
    gc.freeze()  # what has been built stays; the collector would go through it again and again
    bench.run(events)
    gc.unfreeze()
    return bench.took


def row(name: str, took: dict[str, list[float]], most: float) -> str:
    cells = []
    for what in ("a job ends", "a job is submitted", "woken at the tick", "starts and stops are told"):
        values = took.get(what, [])
        cells.append(f"{statistics.median(values):9.2f} {max(values):9.2f}" if values else f"{'–':>9} {'–':>9}")
    worst = max(value for values in took.values() for value in values)
    return f"{name:<11} {' │ '.join(cells)} │ {'ok' if worst < most else 'TOO LONG'}"


def cycles(policies: Sequence[PolicyName], events: int) -> bool:
    """The table of cycles. Returns whether all of them were short enough."""
    good = True
    for waiting, devices, most in SIZES:
        print(f"\n{waiting:,} waiting jobs, {devices:,} devices; ms, each median and longest; to stay under {most:.0f}")
        print(f"{'':<11} {'a job ends':>19} │ {'is submitted':>19} │ {'woken at a tick':>19} │ {'starts, stops':>19} │")
        for policy in policies:
            text = row(policy, measured(policy, waiting, devices, events), most)
            good = good and not text.endswith("LONG")
            print(text, flush=True)
    return good


def growth(policies: Sequence[PolicyName], events: int, longest: int) -> dict[str, list[tuple[int, float]]]:
    """Milliseconds per event, the mean over all kinds, by policy and length of the queue."""
    lengths = [length for length in GROWING if length <= longest]
    devices = SIZES[-1][1]
    print(f"\nms per event (mean) on {devices:,} devices, by how many jobs wait")
    print(f"{'':<11} " + " ".join(f"{length:>10,}" for length in lengths))
    found: dict[str, list[tuple[int, float]]] = {}
    for policy in policies:
        print(f"{policy:<11}", end=" ")
        for length in lengths:
            took = measured(policy, length, devices, events)
            mean = statistics.fmean(value for values in took.values() for value in values)
            found.setdefault(policy, []).append((length, mean))
            print(f"{mean:10.2f}", end=" ", flush=True)
        print()
    return found


def draw(path: Path, found: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from gpusched.simulator.plot import COLORS

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for color, (policy, points) in zip(COLORS, found.items(), strict=False):
        axes.loglog([length for length, _ in points], [mean for _, mean in points], "o-", color=color, label=policy)
    axes.set_xlabel("waiting jobs")
    axes.set_ylabel("ms per event")
    axes.set_title(f"what an event costs on {SIZES[-1][1]:,} devices")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=150)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--policies", default=",".join(PolicyName))
    options.add_argument("--events", type=int, default=200)
    options.add_argument("--longest", type=int, default=GROWING[-1], help="of the queues that grow; 0: none")
    options.add_argument("--plot", type=Path)
    options.add_argument("--json", type=Path, help="write what was found per event there, too")
    given = options.parse_args()
    policies = [PolicyName(name) for name in given.policies.split(",")]
    good = cycles(policies, given.events)
    found = growth(policies, min(given.events, FEW * 2), given.longest) if given.longest else {}
    if given.plot is not None and found:
        draw(given.plot, found)
    if given.json is not None:
        given.json.write_text(json.dumps(found))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
