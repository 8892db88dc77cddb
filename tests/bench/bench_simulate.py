"""How fast the simulator is: a hundred thousand jobs on ten thousand devices, through the real engine. By hand:

    python tests/bench/bench_simulate.py [--jobs 100000] [--policies fifo,sjf,srtf,las] [--trace FILE]
        [--busy 0.95] [--reference FILE]

The jobs are drawn, with a fixed seed, from a real trace (gangs and run times together); they arrive at random at
such a rate that the devices are nearly all in use, or wanted more than once over. --reference: another simulator to
compare with in the same run, a Python file with the function `simulate(rows, policy, nodes, gpn, place, overhead,
tick, limits)`. Figures are processor seconds of this run on this machine; each policy runs in a process of its own,
which tells its memory.
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
from pathlib import Path
from typing import Any

from gpusched.model.policy import COST_PRESETS, PolicyName
from gpusched.simulator.settings import published_rules
from gpusched.simulator.traces import read_trace
from gpusched.simulator.workload import Fleet, TraceJob, Workload
from gpusched.simulator.world import simulate

SAMPLE = Path(__file__).parents[1] / "data" / "philly.csv"
NODES, PER_NODE = 1250, 8


def drawn(trace: Path, count: int, busy: float) -> Workload:
    """So many jobs like those of the trace, arriving so that this share of the devices is wanted in the long run."""
    source = read_trace(trace).jobs
    chance = random.Random(4)
    picked = [chance.choice(source) for _ in range(count)]
    rate = busy * NODES * PER_NODE / (sum(job.gpus * job.duration for job in picked) / count)
    now, jobs = 0.0, []
    for number, job in enumerate(picked):
        now += chance.expovariate(rate)
        jobs.append(TraceJob(str(number), round(now, 3), job.gpus, job.duration))
    return Workload("drawn", tuple(jobs))


def ours(workload: Workload, policy: str) -> dict[str, float]:
    cost = COST_PRESETS["lucid"]
    rules = published_rules(PolicyName(policy), cost=cost, tick=60.0 if policy == "las" else 0.0)
    began = time.process_time()
    outcome = simulate(workload, Fleet(NODES, PER_NODE), rules, cost=cost)
    took = time.process_time() - began
    mean = sum(fate.ended - fate.job.submit for fate in outcome.fates) / len(outcome.fates)
    return {"cpu_s": took, "mean_s": mean, "events": outcome.events, "unfinished": len(outcome.unfinished)}


def theirs(workload: Workload, policy: str, path: str) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [
        {"job_id": job.id, "gpus": job.gpus, "duration_s": job.duration, "submit_s": job.submit}
        for job in workload.jobs
    ]
    began = time.process_time()
    found = module.simulate(rows, policy, NODES, PER_NODE, "pack", "lucid", 60 if policy == "las" else 0, (18000,))
    return {"cpu_s": time.process_time() - began, "mean_s": found["avg_jct_s"]}


def _one(task: tuple[str, str, int, float, str | None]) -> dict[str, float]:
    policy, trace, count, busy, reference = task
    workload = drawn(Path(trace), count, busy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ours(workload, policy) if reference is None else theirs(workload, policy, reference)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "peak_mib": peak / 1024, "before_mib": before / 1024}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--policies", default="fifo,sjf,srtf,las")
    options.add_argument("--trace", default=str(SAMPLE))
    options.add_argument("--busy", type=float, default=0.95, help="wanted devices as a share of all")
    options.add_argument("--reference")
    given = options.parse_args()
    context = multiprocessing.get_context("spawn")
    for policy in given.policies.split(","):
        row: dict[str, Any] = {"policy": policy}
        for who, reference in (("ours", None), ("reference", given.reference)):
            if who == "ours" or reference:
                with context.Pool(1) as pool:
                    row[who] = pool.map(_one, [(policy, given.trace, given.jobs, given.busy, reference)])[0]
        if "reference" in row:
            row["ratio"] = row["ours"]["cpu_s"] / row["reference"]["cpu_s"]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
