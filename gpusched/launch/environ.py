"""What a job sees in its environment. Pure: reads no clock and no os.environ, so that `--dry-run` can show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpusched import rundir
from gpusched.model.job import Job


def job_environment(
    job: Job,
    attempt_number: int,
    devices: Sequence[tuple[int, str]],
    base_env: Mapping[str, str],
    *,
    job_dir: str,
    checkpoint_dir: str,
    master_port: int | None,
    resume: bool,
    started_at: float,
    submit_dir: str,
    grace: float,
) -> dict[str, str]:
    """The whole environment of one attempt.

    devices: (index, uuid) in the order in which the job numbers them. base_env: as submitted, already stripped.
    master_port: a port that is free now, used for jobs of two or more devices. resume: a checkpoint of an earlier
    attempt exists. started_at: wall clock seconds. grace: seconds that the job gets when it is asked to leave.
    """
    env = dict(base_env)
    env.update(_identity(job, attempt_number))
    env.update(_array(job))
    env[rundir.ENV_JOB_DIR] = job_dir
    env[rundir.ENV_CHECKPOINT_DIR] = checkpoint_dir
    env[rundir.ENV_GRACE] = f"{grace:g}"
    env["GPUSCHED_SUBMIT_DIR"] = submit_dir
    env["GPUSCHED_START_TIME"] = str(int(started_at))
    if job.limit_left is not None:
        env[rundir.ENV_END_TIME] = str(int(started_at + job.limit_left))
    if resume:
        env["GPUSCHED_RESUME"] = "1"
    uuids = ",".join(uuid for _, uuid in devices)
    env["GPUSCHED_NUM_GPUS"] = str(len(devices))
    env["GPUSCHED_GPU_UUIDS"] = uuids
    env["GPUSCHED_GPU_IDS"] = ",".join(str(index) for index, _ in devices)
    if job.spec.request.gpus_max is not None:
        env["GPUSCHED_MIN_GPUS"] = str(job.spec.request.gpus)
        env["GPUSCHED_MAX_GPUS"] = str(job.spec.request.gpus_max)
    if job.spec.request.shared and job.spec.request.gpu_mem_mib is not None:
        env["GPUSCHED_GPU_MEM_MIB"] = str(job.spec.request.gpu_mem_mib)
    # By UUID and in the bus's order: CUDA's own numbering (fastest first) is not the one that people see.
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["CUDA_VISIBLE_DEVICES"] = uuids  # "" hides every device from a job of none
    if len(devices) >= 2 and master_port is not None:
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", str(master_port))
    env.setdefault("PYTHONUNBUFFERED", "1")  # otherwise `logs -f` looks dead
    return env


def _identity(job: Job, attempt_number: int) -> dict[str, str]:
    return {
        rundir.ENV_JOB_ID: str(job.id),
        rundir.ENV_ATTEMPT: str(attempt_number),
        "GPUSCHED_RESTART_COUNT": str(job.restarts),
        "GPUSCHED_JOB_NAME": job.spec.name,
        "GPUSCHED_QOS": job.spec.qos,
        "GPUSCHED_PARTITION": job.spec.request.partition,
        "GPUSCHED_ACCOUNT": job.spec.account,
    }


def _array(job: Job) -> dict[str, str]:
    if job.array is None:
        return {}
    return {
        "GPUSCHED_ARRAY_JOB_ID": str(job.array.array_id),
        "GPUSCHED_ARRAY_TASK_ID": str(job.array.index),
        "GPUSCHED_ARRAY_TASK_COUNT": str(job.array.count),
        "GPUSCHED_ARRAY_TASK_MIN": str(job.array.first),
        "GPUSCHED_ARRAY_TASK_MAX": str(job.array.last),
        "GPUSCHED_ARRAY_TASK_STEP": str(job.array.step),
    }
