"""Finish-time fairness: how much longer jobs took than with an equal share of the devices.

ρ = completion time / (duration × contention), after Themis (NSDI'20: T_shared / T_independent), in the form that the
simulator of Shockwave (NSDI'23) reports: contention is how many times over the devices were wanted, on average over
the job's own life, by the jobs that waited or ran then, and at least 1. Shockwave counts such jobs, here their devices
count, because jobs are gangs. ρ above 1 means that others were served at this job's expense; like Shockwave, jobs up
to 1.05 are called fairly treated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpusched.simulator.steps import Steps
from gpusched.simulator.workload import Fate, Fleet, TraceJob

UNFAIR = 1.05
_LEAST = 1.0  # second: what is shorter is no time to be fair about


def fair_times(fates: Sequence[Fate], fleet: Fleet) -> list[float]:
    """Of each job: the seconds that it would take with an equal share of the devices, from submission to end."""
    demand = Steps(_changes(fates, fleet))
    return [
        max(_LEAST, fate.job.duration) * max(1.0, demand.mean(fate.job.submit, fate.ended) / fleet.devices)
        for fate in fates
    ]


def _changes(fates: Sequence[Fate], fleet: Fleet) -> Iterator[tuple[float, float]]:
    """By how many wanted devices which moment changed the demand: jobs come and end."""
    for fate in fates:
        devices = wanted(fate.job, fleet)
        yield fate.job.submit, devices
        yield fate.ended, -devices


def wanted(job: TraceJob, fleet: Fleet) -> float:
    """Devices, where a share of one counts as what it is of its memory."""
    return job.gpus if job.gpu_mem_mib is None else job.gpus * min(1.0, job.gpu_mem_mib / fleet.memory_mib)


def ratios(fates: Sequence[Fate], fair: Sequence[float]) -> list[float]:
    """ρ of each job."""
    return [(fate.ended - fate.job.submit) / time for fate, time in zip(fates, fair, strict=True)]


def by_user(fates: Sequence[Fate], fair: Sequence[float]) -> Mapping[str, float]:
    """ρ of each user (of the account, where jobs have one): all their completion times over all their fair times."""
    took: dict[str, float] = {}
    due: dict[str, float] = {}
    for fate, time in zip(fates, fair, strict=True):
        name = fate.job.account or fate.job.user
        took[name] = took.get(name, 0.0) + fate.ended - fate.job.submit
        due[name] = due.get(name, 0.0) + time
    return {name: took[name] / due[name] for name in sorted(took)}

