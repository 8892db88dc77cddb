"""How long the engine takes with ten thousand waiting jobs on eight devices. Run it by hand:

    python tests/bench/bench_cycle.py [JOBS]

No store, no processes: only Engine.handle and the policies. Figures are medians of one run on this machine; the
ratios compare with the same step on a queue of one hundred jobs.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import PEOPLE, spec

from gpusched.engine.engine import Engine
from gpusched.model.clock import Instant
from gpusched.model.device import DeviceReading, Occupancy
from gpusched.model.events import AttemptExited, AttemptStarted, CancelRequested, DevicesSampled, JobSubmitted
from gpusched.model.job import AttemptKey, JobSpec
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind
from gpusched.policy import explain

DEVICES = 8
NOW = Instant(1_000_000.0, 1_000.0)
MIXED = [
    {"gpus": gpus, "qos": qos, "gpu_mem_mib": mem, "name": name}
    for gpus in (1, 1, 1, 2, 4)
    for qos in ("low", "normal", "high")
    for mem in (None, 10_000, 40_000)
    for name in ("train", "eval")
]


def engine() -> Engine:
    made = Engine(Rules(), "boot")
    readings = [DeviceReading(f"GPU-{i}", i, "NVIDIA H100 80GB HBM3", 81_920, 0) for i in range(DEVICES)]
    made.handle([DevicesSampled(tuple(Occupancy(reading) for reading in readings))], NOW)
    return made


def fill(made: Engine, count: int, wanted: Callable[[int], dict[str, object]]) -> None:
    kinds: dict[str, JobSpec] = {}
    for number in range(count):
        fields = wanted(number)
        kind = kinds.setdefault(repr(fields), spec(**fields))
        made.handle([JobSubmitted(kind, PEOPLE["ann"])], NOW)


def median_ms(step: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def turnover(made: Engine, times: int = 300) -> float:
    """A running job ends and the next one starts, as the daemon does it: one batch for the end, one for the start."""

    def step() -> None:
        key = next(iter(made.view.live.values())).key
        uuids = made.view.live[key.job_id].uuids
        done = made.handle([AttemptExited(key, Outcome(OutcomeKind.EXITED, code=0), uuids)], NOW)
        for action in done.actions:
            if type(action).__name__ == "Launch":
                made.handle([AttemptStarted(AttemptKey(*action.attempt), 1)], NOW)

    return median_ms(step, times)


def reasons(made: Engine) -> float:
    waiting = [job for job in made.state.jobs.values() if job.state is JobState.PENDING]
    return median_ms(lambda: explain.reasons(made.view, waiting, NOW), 7)


def memory(count: int) -> float:
    gc.collect()
    tracemalloc.start()
    made = engine()
    before = tracemalloc.get_traced_memory()[0]
    fill(made, count, lambda i: MIXED[i % len(MIXED)])
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(made.state.jobs) == count
    return used / (1 << 20)


def row(what: str, value: float, unit: str, aim: str, small: float | None = None) -> None:
    ratio = f"{value / small:6.1f} ×" if small else ""
    print(f"{what:<58} {value:9.2f} {unit:<4} {aim:>9} {ratio:>9}")


SITUATIONS: dict[str, Callable[[int], dict[str, object]]] = {
    "equal jobs": lambda i: {},
    f"mixed jobs ({len(MIXED)} kinds)": lambda i: MIXED[i % len(MIXED)],
    "a thousand memory sizes": lambda i: {"gpu_mem_mib": 1_000 + i % 1_000, "qos": ("low", "normal")[i % 2]},
    "each one after its predecessor": lambda i: {"after": f"afterany:{i}"} if i > DEVICES else {},
    "singletons of one name": lambda i: {"after": "singleton"} if i > DEVICES else {"name": f"n{i}"},
    "nine in ten with a begin time to come": lambda i: {"begin": NOW.wall + 3600 + i} if i % 10 else {},
}


def main(count: int) -> None:
    print(f"{count} waiting jobs on {DEVICES} devices{'':<26} {'median':>9} {'':<4} {'aim':>9} {'vs 100':>9}")
    for name, wanted in SITUATIONS.items():
        small, large = engine(), engine()
        fill(small, 100 + DEVICES, wanted)
        fill(large, count + DEVICES, wanted)
        of_small, of_large = reasons(small), reasons(large)
        row(f"job end → next start, {name}", turnover(large), "ms", "< 5", turnover(small, 10))
        row(f"the reasons of all, {name}", of_large, "ms", "< 100", of_small)
    array(count)
    row("memory of the waiting jobs, mixed", memory(count), "MiB", "")


def array(count: int) -> None:
    made = engine()
    submit = JobSubmitted(spec(gpus=1), PEOPLE["ann"], array=f"0-{count - 1}%4")
    row("submit an array of all", median_ms(lambda: made.handle([submit], NOW), 1), "ms", "")
    behind = JobSubmitted(spec(after="afterok:1"), PEOPLE["ann"], array=f"0-{count - 1}")
    row("submit an array that waits for that array", median_ms(lambda: made.handle([behind], NOW), 1), "ms", "")
    row("job end → next start, array behind array", turnover(made), "ms", "< 5")
    cancel = CancelRequested(("1",), PEOPLE["ann"])
    row("cancel the first array, and so the second", median_ms(lambda: made.handle([cancel], NOW), 1), "ms", "")
    ended = sum(job.state is JobState.CANCELLED for job in made.state.jobs.values())
    assert ended >= count - 400, ended


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
