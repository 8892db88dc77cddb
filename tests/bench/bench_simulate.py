"""How fast the simulator is: a hundred thousand jobs on ten thousand devices, through the real engine. By hand:

    python tests/bench/bench_simulate.py [--jobs 100000] [--nodes 1250] [--policies fifo,sjf,srtf,las] [--trace FILE]
        [--busy 0.95,3] [--reference FILE]

The jobs are drawn, with a fixed seed, from a real trace (gangs and run times together); they arrive at random at
such a rate that this share of the devices is wanted in the long run: at 0.95 nearly all, at 3 three times over. Run
times are heavy-tailed, so the devices only fill up while the jobs arrive: what load came of it is part of each row,
over the time in which jobs arrive: `in_use`, the share of the devices that were in use, and `waited`, the share of
the time in which at least one job waited.

--reference: another simulator to compare with in the same run, a Python file with the function `simulate(rows,
policy, nodes, gpn, place, overhead, tick, limits)`. Figures are processor seconds of this run on this machine; each
policy runs in a process of its own, which tells its memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import random
import resource
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpusched.model.policy import COST_PRESETS, PolicyName
from gpusched.simulator.settings import published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, Outcome, TraceJob, Workload
from gpusched.simulator.world import simulate

SAMPLE = Path(__file__).parents[1] / "data" / "philly.csv"
PER_NODE = 8


@dataclass(frozen=True)
class Task:
    """One simulation, by us or (with its file) by the reference."""

    policy: str
    trace: str
    jobs: int
    busy: float
    nodes: int
    reference: str | None


def drawn(trace: Path, count: int, busy: float, nodes: int) -> Workload:
    """So many jobs like those of the trace, arriving so that this share of the devices is wanted in the long run."""
    source = read_trace(trace).jobs
    chance = random.Random(4)
    picked = [chance.choice(source) for _ in range(count)]
    rate = busy * nodes * PER_NODE / (sum(job.gpus * job.duration for job in picked) / count)
    now, jobs = 0.0, []
    for number, job in enumerate(picked):
        now += chance.expovariate(rate)
        jobs.append(TraceJob(str(number), round(now, 3), job.gpus, job.duration))
    return Workload("drawn", tuple(jobs))


def load(outcome: Outcome) -> dict[str, float]:
    """What load it was while jobs arrived."""
    begin, end = (pick(fate.job.submit for fate in outcome.fates) for pick in (min, max))
    held = sum(fate.job.gpus * max(0.0, min(end, fate.ended) - fate.started) for fate in outcome.fates)
    waited, until = 0.0, begin
    for submit, started in sorted((fate.job.submit, min(end, fate.started)) for fate in outcome.fates):
        waited += max(0.0, started - max(submit, until))
        until = max(until, started)
    return {"in_use": held / ((end - begin) * outcome.fleet.devices), "waited": waited / (end - begin)}


def ours(workload: Workload, policy: str, nodes: int) -> dict[str, float]:
    cost = COST_PRESETS["lucid"]
    rules = published_rules(PolicyName(policy), cost=cost, tick=60.0 if policy == "las" else 0.0)
    began = time.process_time()
    outcome = simulate(workload, Fleet(nodes, PER_NODE), rules, cost=cost)
    took = time.process_time() - began
    mean = sum(fate.ended - fate.job.submit for fate in outcome.fates) / len(outcome.fates)
    told = {"cpu_s": took, "mean_s": mean, "events": outcome.events, "unfinished": len(outcome.unfinished)}
    return {**told, **load(outcome)}


def theirs(workload: Workload, policy: str, nodes: int, path: str) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [
        {"job_id": job.id, "gpus": job.gpus, "duration_s": job.duration, "submit_s": job.submit}
        for job in workload.jobs
    ]
    began = time.process_time()
    found = module.simulate(rows, policy, nodes, PER_NODE, "pack", "lucid", 60 if policy == "las" else 0, (18000,))
    return {"cpu_s": time.process_time() - began, "mean_s": found["avg_jct_s"]}


def _one(task: Task) -> dict[str, float]:
    workload = drawn(Path(task.trace), task.jobs, task.busy, task.nodes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if task.reference is None:
        found = ours(workload, task.policy, task.nodes)
    else:
        found = theirs(workload, task.policy, task.nodes, task.reference)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "peak_mib": peak / 1024, "before_mib": before / 1024}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--nodes", type=int, default=1250, help=f"machines of {PER_NODE} devices")
    options.add_argument("--policies", default="fifo,sjf,srtf,las")
    options.add_argument("--trace", default=str(SAMPLE))
    options.add_argument("--busy", default="0.95", help="wanted devices as a share of all, one or more")
    options.add_argument("--reference")
    given = options.parse_args()
    context = multiprocessing.get_context("spawn")
    for busy, policy in product(map(float, given.busy.split(",")), given.policies.split(",")):
        row: dict[str, Any] = {"policy": policy, "busy": busy}
        for who, reference in (("ours", None), ("reference", given.reference)):
            if who == "ours" or reference:
                with context.Pool(1) as pool:
                    task = Task(policy, given.trace, given.jobs, busy, given.nodes, reference)
                    row[who] = pool.map(_one, [task])[0]
        if "reference" in row:
            row["ratio"] = row["ours"]["cpu_s"] / row["reference"]["cpu_s"]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
