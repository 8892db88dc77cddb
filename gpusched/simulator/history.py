"""The machine's own ended jobs as a workload, and how they fared: what is compared with what might have been.

It takes JOBs as the API tells them (docs/api.md), and asks nobody for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpusched.simulator.errors import SimulationError
from gpusched.simulator.workload import Fate, Fleet, Outcome, TraceJob, Workload

AS_IT_WAS = "as it was"
FEWEST_TO_LEARN = 20  # ended jobs, below which predictions say nothing about a policy
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Past:
    """What a history holds: the jobs, how they fared, and how many were left out."""

    workload: Workload
    real: Outcome
    without_devices: int  # --gpus 0
    never_ran: int  # cancelled while they waited, or their start failed


def past_of(jobs: Sequence[Json], fleet: Fleet, source: str) -> Past:
    """Ended jobs as a workload. A job arrives when it could first have been started: held jobs were not in the queue.

    Its duration is what its attempts ran in all, without what preemptions cost it. Times count from the first arrival.
    Raises SimulationError if there is none that ran on a device.
    """
    on_devices = [job for job in jobs if job["gpus"]]
    ran = [job for job in on_devices if _ran(job) > 0]
    if not ran:
        raise SimulationError(
            f"{source}: no job that used a device has ended in this time",
            "look further back with --since 90d, or give a trace: gpusched simulate TRACE",
        )
    zero = min(_arrival(job) for job in ran)
    fates = sorted((_fate(job, zero) for job in ran), key=lambda fate: (fate.job.submit, fate.ended))
    return Past(
        Workload(source, tuple(fate.job for fate in fates)),
        Outcome(AS_IT_WAS, fleet, tuple(fates), (), (), 0, 0.0),
        without_devices=len(jobs) - len(on_devices),
        never_ran=len(on_devices) - len(ran),
    )


def check_can_learn(workload: Workload) -> None:
    """Raises SimulationError if a history is too short for predictions."""
    if len(workload.jobs) < FEWEST_TO_LEARN:
        raise SimulationError(
            f"{workload.source} has {len(workload.jobs)} ended jobs: too few to learn durations from",
            f"predicted needs at least {FEWEST_TO_LEARN}; look further back with --since 90d, or take las",
        )


def _fate(job: Json, zero: float) -> Fate:
    arrival, ran, gpus = _arrival(job), _ran(job), _gpus(job)
    lost = min(float(job.get("lost") or 0.0), ran)
    started = max(arrival, float(job.get("first_started_at") or job["started_at"] or arrival))
    ended = max(started, float(job["ended_at"] or started))
    made = TraceJob(
        id=str(job["job"]),
        submit=arrival - zero,
        gpus=gpus,
        duration=ran - lost,
        user=str(job["user"]),
        account=str(job["account"] or ""),
        name=str(job["name"]),
        gpu_mem_mib=job["gpu_mem_mib"] if job["shared"] else None,
    )
    preemptions = int(job.get("preemptions") or 0)
    return Fate(made, started - zero, ended - zero, preemptions, held=ran * gpus, lost=lost * gpus)


def _arrival(job: Json) -> float:
    return float(job.get("eligible_at") or job["submitted_at"])


def _ran(job: Json) -> float:
    """Seconds in all attempts; of jobs of older versions, which did not keep it, by their device time."""
    return float(job.get("ran") or (job["gpu_seconds"] or 0.0) / max(1, job["gpus"]))


def _gpus(job: Json) -> int:
    """Devices; of an elastic job as many as it had on average."""
    if job.get("gpus_max") and job.get("ran") and job["gpu_seconds"]:
        return max(1, round(float(job["gpu_seconds"]) / float(job["ran"])))
    return int(job["gpus"])
