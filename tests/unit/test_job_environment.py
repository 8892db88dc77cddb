"""What a job finds in its environment."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpusched.launch.environ import job_environment
from gpusched.model.environment import strip_scheduler_variables
from gpusched.model.job import ArrayElement, Job, JobSpec, Owner, Request
from gpusched.model.state import JobState

ALICE = Owner(1000, 1000, "alice")
TWO = ((3, "GPU-bbb"), (0, "GPU-aaa"))


def a_job(request: Request | None = None, **spec: Any) -> Job:
    base = JobSpec(("python", "train.py"), "/home/alice", name="train", request=request or Request(), **spec)
    return Job(42, ALICE, base, JobState.STARTING, 10.0, restarts=2)


def environment(job: Job, devices: tuple[tuple[int, str], ...] = ((0, "GPU-aaa"),), **more: Any) -> dict[str, str]:
    usual: dict[str, Any] = {
        "base_env": {"PATH": "/bin", "HOME": "/home/alice"},
        "job_dir": "/run/jobs/42-3",
        "checkpoint_dir": "/data/ckpt/42",
        "master_port": 29500,
        "resume": False,
        "started_at": 1700000000.9,
        "submit_dir": "/home/alice/work",
        "grace": 60.0,
    }
    values = {**usual, **more}
    return job_environment(job, 3, devices, values.pop("base_env"), **values)


def test_the_whole_environment_of_a_simple_job() -> None:
    assert environment(a_job(qos="high", account="vision")) == {
        "PATH": "/bin",
        "HOME": "/home/alice",
        "GPUSCHED_JOB_ID": "42",
        "GPUSCHED_JOB_NAME": "train",
        "GPUSCHED_ATTEMPT": "3",
        "GPUSCHED_RESTART_COUNT": "2",
        "GPUSCHED_QOS": "high",
        "GPUSCHED_PARTITION": "default",
        "GPUSCHED_ACCOUNT": "vision",
        "GPUSCHED_JOB_DIR": "/run/jobs/42-3",
        "GPUSCHED_CHECKPOINT_DIR": "/data/ckpt/42",
        "GPUSCHED_SUBMIT_DIR": "/home/alice/work",
        "GPUSCHED_GRACE_SECONDS": "60",
        "GPUSCHED_START_TIME": "1700000000",
        "GPUSCHED_NUM_GPUS": "1",
        "GPUSCHED_GPU_UUIDS": "GPU-aaa",
        "GPUSCHED_GPU_IDS": "0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-aaa",
        "PYTHONUNBUFFERED": "1",
    }


def test_every_value_is_text_without_surprises() -> None:
    env = environment(a_job(time_limit=60.5), TWO, resume=True)
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in env.items())
    assert not any("None" in value for value in env.values())


def test_a_job_without_devices_sees_none_of_them() -> None:
    env = environment(a_job(Request(gpus=0)), (), base_env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert env["CUDA_VISIBLE_DEVICES"] == "" and env["GPUSCHED_GPU_UUIDS"] == ""
    assert env["GPUSCHED_NUM_GPUS"] == "0" and "MASTER_PORT" not in env


def test_a_gang_gets_a_meeting_point_and_its_devices_in_order() -> None:
    env = environment(a_job(Request(gpus=2)), TWO)
    assert env["CUDA_VISIBLE_DEVICES"] == env["GPUSCHED_GPU_UUIDS"] == "GPU-bbb,GPU-aaa"
    assert env["GPUSCHED_GPU_IDS"] == "3,0"
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", "29500")


def test_one_device_needs_no_meeting_point() -> None:
    assert "MASTER_ADDR" not in environment(a_job())
    assert "MASTER_PORT" not in environment(a_job(Request(gpus=2)), TWO, master_port=None)


def test_what_the_user_has_set_stays() -> None:
    mine = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "PYTHONUNBUFFERED": "", "HOME": "/h", "OMP_NUM_THREADS": "4"}
    env = environment(a_job(Request(gpus=2)), TWO, base_env=mine)
    assert {name: env[name] for name in mine} == mine


def test_devices_are_ours_to_say() -> None:
    lies = {"CUDA_VISIBLE_DEVICES": "7", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    env = environment(a_job(), base_env=lies)
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("GPU-aaa", "PCI_BUS_ID")


def test_the_submitted_environment_is_not_changed() -> None:
    base = {"A": "1"}
    environment(a_job(), base_env=base)
    assert base == {"A": "1"}


def test_the_end_is_known_only_with_a_limit_and_resume_only_with_a_checkpoint() -> None:
    assert environment(a_job(time_limit=3600.0), resume=True)["GPUSCHED_END_TIME"] == "1700003600"
    assert environment(a_job(), resume=True)["GPUSCHED_RESUME"] == "1"
    assert not {"GPUSCHED_END_TIME", "GPUSCHED_RESUME"} & set(environment(a_job()))


def test_a_share_of_a_device_is_told() -> None:
    shared = environment(a_job(Request(gpu_mem_mib=10240, shared=True)))
    assert shared["GPUSCHED_GPU_MEM_MIB"] == "10240"
    assert "GPUSCHED_GPU_MEM_MIB" not in environment(a_job(Request(gpu_mem_mib=10240)))


def test_array_elements_know_their_place() -> None:
    job = dataclasses.replace(a_job(), array=ArrayElement(40, 4, 3, 0, 8, 4, 0))
    env = environment(job)
    found = {name.removeprefix("GPUSCHED_ARRAY_"): value for name, value in env.items() if "_ARRAY_" in name}
    assert found == {
        "JOB_ID": "40", "TASK_ID": "4", "TASK_COUNT": "3", "TASK_MIN": "0", "TASK_MAX": "8", "TASK_STEP": "4",
    }  # fmt: skip
    assert not [name for name in environment(a_job()) if "_ARRAY_" in name]


def test_inherited_scheduler_and_service_variables_are_stripped() -> None:
    kept = {"PATH": "/bin", "MY_SLURM_NOTE": "x", "CUDA_HOME": "/usr/cuda", "LISTENER": "1", "WANDB_KEY": "s"}
    stripped = {
        "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SBATCH_QOS": "x", "GPUSCHED_JOB_ID": "7",
        "GPUSCHED_ATTEMPT_MARK": "m", "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1", "LISTEN_PID": "1",
        "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "INVOCATION_ID": "a", "JOURNAL_STREAM": "8:1",
    }  # fmt: skip
    assert strip_scheduler_variables({**kept, **stripped}) == kept


def test_an_elastic_job_learns_what_it_has_and_what_it_may_have() -> None:
    env = environment(a_job(Request(gpus=1, gpus_max=4)), TWO)
    assert (env["GPUSCHED_NUM_GPUS"], env["GPUSCHED_MIN_GPUS"], env["GPUSCHED_MAX_GPUS"]) == ("2", "1", "4")
    assert "GPUSCHED_MAX_GPUS" not in environment(a_job(Request(gpus=2)), TWO)
