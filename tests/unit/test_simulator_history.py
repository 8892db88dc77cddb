"""The machine's own ended jobs become a workload, and what really happened becomes a row to compare with."""

from __future__ import annotations

from typing import Any

import pytest

from gpusched.simulator.errors import SimulationError
from gpusched.simulator.history import AS_IT_WAS, Past, check_can_learn, past_of
from gpusched.simulator.report import report
from gpusched.simulator.workload import Fleet, TraceJob, Workload

T = 1_795_000_000.0


def ended(key: str = "1", **facts: Any) -> dict[str, Any]:
    """Submitted at T, started 10 s later, ran for 100 s on one device."""
    return {
        "job": key, "gpus": 1, "user": "ann", "account": "", "name": "train", "shared": False, "gpu_mem_mib": None,
        "submitted_at": T, "eligible_at": T, "started_at": T + 10, "first_started_at": T + 10, "ended_at": T + 110,
        "ran": 100.0, "gpu_seconds": 100.0, "preemptions": 0, "lost": 0.0, **facts,
    }  # fmt: skip


def past(*jobs: dict[str, Any]) -> Past:
    return past_of(jobs, Fleet(1, 4), "history")


def test_a_job_arrives_when_it_could_first_have_been_started() -> None:
    found = past(ended("1"), ended("2", submitted_at=T - 500, eligible_at=T + 5, account="lab"))
    assert found.workload.jobs == (
        TraceJob("1", 0.0, 1, 100.0, "ann", "", "train"),
        TraceJob("2", 5.0, 1, 100.0, "ann", "lab", "train"),
    )


def test_what_really_happened_is_told_in_the_same_figures() -> None:
    moved = ended("2", gpus=2, ran=130.0, gpu_seconds=260.0, preemptions=1, lost=30.0, ended_at=T + 400)
    row = report(past(ended("1"), moved).real)
    assert row.policy == AS_IT_WAS
    assert row.mean_completion_s == (110 + 400) / 2
    assert row.mean_first_wait_s == 10.0
    assert (row.preemptions, row.lost_gpu_s) == (1, 60.0)
    assert past(moved).workload.jobs[0].duration == 100.0  # without what the preemption cost


def test_jobs_without_devices_and_jobs_that_never_ran_are_counted() -> None:
    waited = ended("3", ran=0.0, gpu_seconds=0.0, started_at=None, first_started_at=None)
    found = past(ended("1"), ended("2", gpus=0, gpu_seconds=0.0), waited)
    assert (len(found.workload.jobs), found.without_devices, found.never_ran) == (1, 1, 1)


def test_a_history_with_nothing_that_ran_is_an_error() -> None:
    with pytest.raises(SimulationError, match="history: no job that used a device has ended in this time"):
        past(ended(gpus=0, gpu_seconds=0.0))
    with pytest.raises(SimulationError):
        past()


def test_jobs_of_older_versions_are_measured_by_their_device_time() -> None:
    old = ended(gpus=4, gpu_seconds=400.0)
    for name in ("ran", "eligible_at", "first_started_at", "preemptions", "lost"):
        del old[name]
    (fate,) = past(old).real.fates
    assert (fate.job.duration, fate.job.gpus, fate.started, fate.held) == (100.0, 4, 10.0, 400.0)


def test_elastic_jobs_count_as_many_devices_as_they_had_on_average() -> None:
    (job,) = past(ended(gpus=2, gpus_max=8, gpu_seconds=620.0)).workload.jobs
    assert job.gpus == 6


def test_a_share_stays_a_share() -> None:
    exclusive, shared = past(ended("1", gpu_mem_mib=1024), ended("2", shared=True, gpu_mem_mib=1024)).workload.jobs
    assert (exclusive.gpu_mem_mib, shared.gpu_mem_mib) == (None, 1024)


def test_a_clock_that_was_set_back_makes_no_negative_times() -> None:
    (fate,) = past(ended(first_started_at=T - 50, ended_at=T - 20)).real.fates
    assert fate.job.submit <= fate.started <= fate.ended


def test_predictions_need_a_history_that_is_long_enough() -> None:
    jobs = tuple(TraceJob(str(number), 0.0, 1, 1.0) for number in range(20))
    check_can_learn(Workload("history", jobs))
    with pytest.raises(SimulationError, match="history has 19 ended jobs: too few"):
        check_can_learn(Workload("history", jobs[:19]))
