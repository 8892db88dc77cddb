"""What one run says about its policy, in figures. Raises where a run is no result, because a job did not end.

All times in seconds, all shares from 0 to 1. Percentiles are the element at n·p of the sorted times, as published
simulators take them, not interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpusched.simulator import fairness
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.workload import Fate, Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """completion: from submission to end. wait: completion − duration, so it holds what preemptions cost.

    utilization: useful device-seconds (duration × devices) of all that there were until the last end.
    lost_share: device-seconds lost to being moved, of those that attempts held devices.
    worst_rho, unfair_share: finish-time fairness of jobs and the share of them above 1.05. user_rho: of each user.
    """

    policy: str
    jobs: int
    mean_completion_s: float
    median_completion_s: float
    p99_completion_s: float
    mean_wait_s: float
    mean_first_wait_s: float
    p99_wait_s: float
    makespan_s: float
    utilization: float
    preemptions: int
    jobs_preempted: int
    lost_gpu_s: float
    lost_share: float
    mean_rho: float
    worst_rho: float
    worst_rho_job: str
    unfair_share: float
    user_rho: Mapping[str, float]
    unfinished: int
    events: int
    cpu_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def report(outcome: Outcome) -> Report:
    """The figures of a run. Raises SimulationError if jobs are unfinished: the others' times would look too good."""
    check_finished(outcome)
    fates, fleet = outcome.fates, outcome.fleet
    if not fates:
        raise SimulationError(f"{outcome.policy}: there was no job", "a workload needs at least one")
    completion = sorted(fate.ended - fate.job.submit for fate in fates)
    waits = sorted(fate.ended - fate.job.submit - fate.job.duration for fate in fates)
    fair = fairness.fair_times(fates, fleet)
    rho = fairness.ratios(fates, fair)
    makespan = max(fate.ended for fate in fates) - min(fate.job.submit for fate in fates)
    useful = math.fsum(fairness.wanted(fate.job, fleet) * fate.job.duration for fate in fates)
    held, lost = math.fsum(fate.held for fate in fates), math.fsum(fate.lost for fate in fates)
    worst = max(range(len(fates)), key=rho.__getitem__)
    users = any(fate.job.user or fate.job.account for fate in fates)
    return Report(
        policy=outcome.policy,
        jobs=len(fates),
        mean_completion_s=_mean(completion),
        median_completion_s=completion[len(completion) // 2],
        p99_completion_s=_p99(completion),
        mean_wait_s=_mean(waits),
        mean_first_wait_s=_mean([fate.started - fate.job.submit for fate in fates]),
        p99_wait_s=_p99(waits),
        makespan_s=makespan,
        utilization=useful / (makespan * fleet.devices) if makespan > 0 else 0.0,
        preemptions=sum(fate.preemptions for fate in fates),
        jobs_preempted=sum(fate.preemptions > 0 for fate in fates),
        lost_gpu_s=lost,
        lost_share=lost / held if held > 0 else 0.0,
        mean_rho=_mean(rho),
        worst_rho=rho[worst],
        worst_rho_job=fates[worst].job.id,
        unfair_share=sum(value > fairness.UNFAIR for value in rho) / len(rho),
        user_rho=dict(fairness.by_user(fates, fair)) if users else {},
        unfinished=0,
        events=outcome.events,
        cpu_s=outcome.cpu_s,
    )


def check_finished(outcome: Outcome) -> None:
    """Raises SimulationError naming how many jobs did not end, and the first few."""
    left = outcome.unfinished
    if not left:
        return
    named = ", ".join(job.id for job in left[:5]) + ("" if len(left) <= 5 else ", …")
    raise SimulationError(
        f"{outcome.policy}: {len(left)} of {len(left) + len(outcome.fates)} jobs did not finish ({named}): "
        "this run is no result",
        "the times of those that did finish would look too good. With --config, look for a max_time that ends them, or "
        "for what they can never have; else this is a fault of gpusched, please report it",
    )


def completion_curve(fates: Sequence[Fate]) -> tuple[list[float], list[float]]:
    """Completion times, ascending, and the share of jobs that had taken at most so long: an empirical CDF."""
    times = sorted(fate.ended - fate.job.submit for fate in fates)
    return times, [(place + 1) / len(times) for place in range(len(times))]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _p99(ascending: Sequence[float]) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * 0.99))]
