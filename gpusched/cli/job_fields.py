"""What --format, --sort and --csv know of a job: the keys of JOB in docs/api.md, and a few that are made of them."""

from __future__ import annotations

from collections.abc import Sequence

from gpusched.cli import estimate, text
from gpusched.cli.output import Field, Json

_PLAIN = (
    "job", "id", "array_id", "array_index", "array_indices", "array_count", "array_limit", "name", "user", "uid",
    "state", "code", "reason", "reason_text", "position",
    "qos", "partition", "account", "gpu_mem_mib", "shared", "gpu_type", "devices", "attempt", "restarts", "exit_code",
    "exit_signal", "exit_text", "exit_status", "cwd", "output", "error_output", "job_dir", "checkpoint_dir", "saved",
    "watching", "dependency", "comment", "cron", "stopping", "pid", "gpus_max", "gpu_counts", "resizes", "speeds",
    "reservation", "estimated_start",
    "preemptions", "nice",
)  # fmt: skip
_MOMENTS = ("submitted_at", "eligible_at", "begin_at", "started_at", "ended_at", "next_run_at")
_DURATIONS = ("elapsed", "waited", "time_limit", "expected", "eta", "gpu_seconds", "ran", "lost")
_STATE_COLORS = {
    "RUNNING": "green", "STARTING": "green", "STOPPING": "magenta", "PENDING": "yellow", "COMPLETED": "dim",
    "FAILED": "red", "TIMEOUT": "red", "LOST": "red", "CANCELLED": "dim", "PREEMPTED": "magenta",
}  # fmt: skip


def state_color(job: Json) -> str:
    return _STATE_COLORS.get(str(job.get("state")), "")


def _moment_field(name: str) -> Field:
    return Field(text=lambda job: text.moment(job.get(name)))


def _duration_field(name: str) -> Field:
    return Field(text=lambda job: text.duration(job.get(name)), right=True)


def _gpu_hours(job: Json) -> float | None:
    seconds = job.get("gpu_seconds")
    return None if seconds is None else round(seconds / 3600, 2)


def _where(job: Json) -> str | None:
    place = text.where(job)
    return None if place == "-" else place


def _start(job: Json) -> float | None:
    """When it is expected to start, seconds since the epoch."""
    found: Json = job.get("estimated_start") or {}
    return found.get("expected")


def _exit(job: Json) -> str | None:
    return None if (shown := text.exit_code(job)) == "-" else shown


JOB_FIELDS: dict[str, Field] = {
    **{name: Field() for name in _PLAIN},
    **{name: _moment_field(name) for name in _MOMENTS},
    **{name: _duration_field(name) for name in _DURATIONS},
    "job": Field(header="JOBID", right=True),
    "state": Field(color=state_color),
    "st": Field(value=lambda job: job.get("code"), header="ST", color=state_color),
    "command": Field(text=lambda job: text.command_line(job.get("command") or [])),
    "gpus": Field(text=text.gpus_asked, right=True),
    "progress": Field(text=text.progress),
    "metrics": Field(
        text=lambda job: text.metrics(job.get("progress") or {}) or "-",
        value=lambda job: (job.get("progress") or {}).get("metrics"),
    ),
    "time": Field(
        text=text.time_of_limit, value=lambda job: job.get("elapsed"), header="TIME/LIMIT", right=True
    ),
    "start": Field(text=lambda job: estimate.in_table(job.get("estimated_start")), value=_start),
    "where": Field(text=text.where, value=_where, header="GPU_IDS(REASON)"),
    "exit": Field(text=text.exit_code, value=_exit, right=True),
    "gpu_hours": Field(value=_gpu_hours, right=True),
    "priority": Field(
        text=lambda job: "-" if job.get("priority") is None else f"{job['priority']:.1f}", right=True
    ),
    "preempted": Field(value=lambda job: job.get("restarts"), right=True),
    "end": Field(text=lambda job: text.moment(job.get("ended_at")), value=lambda job: job.get("ended_at")),
}

QUEUE_COLUMNS = ("job", "name", "user", "st", "time", "gpus", "qos", "progress", "start", "where")
QUEUE_KEYS = (  # of JOB: what these columns, and folding arrays, are made of
    "job", "array_id", "array_index", "array_indices", "array_count", "array_limit", "name", "user", "state", "code",
    "reason", "reason_text", "elapsed", "time_limit", "gpus", "shared", "gpu_mem_mib", "qos", "progress", "eta",
    "devices", "stopping", "attempt", "gpus_max", "gpu_counts", "estimated_start",
)  # fmt: skip
HISTORY_COLUMNS = ("job", "name", "user", "state", "exit", "elapsed", "gpu_hours", "preempted", "end")


def queue_columns(rows: Sequence[Json]) -> tuple[str, ...]:
    """QUEUE_COLUMNS, without START where nobody can say when anything starts."""
    some = any(_start(row) is not None for row in rows)
    return tuple(name for name in QUEUE_COLUMNS if some or name != "start")
