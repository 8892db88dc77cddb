"""Facts as people read them: times, devices, progress, and names whose control characters are made harmless."""

from __future__ import annotations

import time
from typing import Any

from gpusched.model.gpu_count import counts_text
from gpusched.model.units import format_duration, format_size

Json = dict[str, Any]


def escape(text: object) -> str:
    """Text from other people, safe on a terminal: control and direction characters become visible escapes."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def moment(seconds: float | None) -> str:
    """A wall-clock time in the local time zone, as Slurm writes it; '-' for none."""
    if seconds is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"


def duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


def time_of_limit(job: Json) -> str:
    """`1:02:03/2:00:00`; without a limit just the time. What waits has run for 0:00."""
    waits = job.get("state") == "PENDING"
    spent = format_duration(0.0 if waits else job.get("elapsed") or 0.0)
    return f"{spent}/{format_duration(job['time_limit'])}" if job.get("time_limit") else spent


def gpus_asked(job: Json) -> str:
    """`2`; `1x10G` for a share of 10 GiB; of an elastic job `2-8`, and while it runs `2-8 (now 4)`."""
    count = job.get("gpus", 0)
    if job.get("gpus_max"):
        asked = counts_text(count, job["gpus_max"], job.get("gpu_counts") or ())
        held = len(job.get("devices") or ())
        return f"{asked} (now {held})" if held else asked
    if job.get("shared") and job.get("gpu_mem_mib"):
        return f"{count}x{format_size(job['gpu_mem_mib'])}"
    return str(count)


def index_of(device: Json) -> str:
    """The index of a device that a job has or had; a question mark if it is not here any more."""
    return "?" if device.get("index") is None else str(device["index"])


def device_ids(job: Json) -> str:
    return ",".join(index_of(device) for device in job.get("devices") or ())


def leaving(job: Json) -> str:
    """Why a job is being stopped and how long it still has, in words; empty if it is not."""
    stopping = job.get("stopping")
    if not stopping:
        return ""
    left = stopping.get("deadline_in")
    for_job = f" for {stopping['for_job']}" if stopping.get("for_job") else ""
    clock = f", {format_duration(left)} left" if left is not None else ""
    return f"leaving{for_job}: {escape(stopping.get('cause', ''))}{clock}"


def where(job: Json) -> str:
    """GPU_IDS(REASON): the devices it has, or in brackets why it has none."""
    if stop := leaving(job):
        return f"{device_ids(job)} ({stop})".strip()
    ids = device_ids(job)
    if ids or job.get("state") != "PENDING":
        return ids or "-"
    word, text = escape(job.get("reason") or "None"), escape(job.get("reason_text") or "")
    return f"({word}: {text})" if text else f"({word})"


def progress(job: Json) -> str:
    """`epoch 2 step 340/1000 ETA 3:10`; '-' if the job tells nothing."""
    told = job.get("progress") or {}
    parts = []
    if told.get("epoch") is not None:
        parts.append(f"epoch {told['epoch']}")
    if told.get("step") is not None:
        total = f"/{told['total']}" if told.get("total") is not None else ""
        parts.append(f"step {told['step']}{total}")
    if parts and job.get("eta") is not None and job.get("state") != "PENDING":
        parts.append(f"ETA {format_duration(job['eta'])}")
    return escape(" ".join(parts)) or "-"


def exit_code(job: Json) -> str:
    """sacct's `code:signal`; '-' while there is none."""
    code, number = job.get("exit_code"), job.get("exit_signal")
    return "-" if code is None and number is None else f"{code or 0}:{number or 0}"


def metrics(told: Json) -> str:
    """`loss 0.913  accuracy 0.51`."""
    values = told.get("metrics") or {}
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return escape("  ".join(shown))


def command_line(words: list[str]) -> str:
    """The command as one could type it."""
    from shlex import join

    return escape(join(words))
