"""`gpusched show JOB…`: everything about a job, with its attempts and its whole story."""

from __future__ import annotations

from typing import Any

import click

from gpusched.cli import estimate, text
from gpusched.cli.array_rows import count_of, fold_arrays
from gpusched.cli.connect import connect, resolve
from gpusched.cli.job_fields import JOB_FIELDS, queue_columns, state_color
from gpusched.cli.output import Json, Style, print_json, print_list
from gpusched.cli.select import job_argument
from gpusched.cli.settings import paint, settings
from gpusched.model.units import format_size


@click.command()
@job_argument()
def show(words: tuple[str, ...]) -> None:
    """Show everything about jobs.

    What was asked for, every attempt, and the story so far; of an array, its elements.
    """
    with connect(names_jobs=True) as client:
        jobs = [client.job(key) for key in resolve(client, words)]
    if settings.json:
        print_json(jobs[0] if len(jobs) == 1 else {"jobs": jobs})
        return
    for place, job in enumerate(jobs):
        if place:
            print()
        if "elements" in job:
            key = job["array"]
            count = job.get("count") or count_of(job["elements"])
            print(f"array {key}: {count} elements (one of them: gpusched show {key.partition('_')[0]}_N)")
            rows = fold_arrays(job["elements"])
            print_list(rows, queue_columns(rows), JOB_FIELDS, Style(), "jobs")
            if job.get("left_off"):
                print(f"… and {job['left_off']} that have completed (gpusched history --jobs {key})")
        else:
            print("\n".join(_lines(job)))


def _lines(job: Json) -> list[str]:
    title = f"job {job['job']}  {text.escape(job['name'])}  {text.escape(job['user'])}"
    lines = [f"{paint(title, 'bold')}  {paint(str(job['state']), state_color(job))}"]
    lines += [f"  {name:<12} {value}" for name, value in (*_asked(job), *_now(job)) if value not in ("", "-")]
    if job.get("attempts"):
        lines += ["", "attempts", *(_attempt(attempt) for attempt in job["attempts"])]
    if job.get("story"):
        lines += ["", "story", *(_story(line) for line in job["story"])]
    return lines


def _asked(job: Json) -> list[tuple[str, str]]:
    """What was submitted."""
    source = job.get("source") or {}
    commit = str(source.get("git_commit") or "")[:12]
    dirty = ", with uncommitted changes" if commit and source.get("git_dirty") else ""
    return [
        ("command", text.command_line(job.get("command") or [])),
        ("directory", text.escape(job.get("cwd") or "")),
        ("script", text.escape(source.get("script") or "")),
        ("git commit", f"{text.escape(commit)}{dirty}"),
        ("asks for", _request(job)),
        ("QoS", text.escape(job.get("qos") or "")),
        ("partition", text.escape(job.get("partition") or "")),
        ("reservation", text.escape(job.get("reservation") or "")),
        ("account", text.escape(job.get("account") or "")),
        ("time limit", text.duration(job["time_limit"]) if job.get("time_limit") else ""),
        ("expected", text.duration(job["expected"]) if job.get("expected") else ""),
        ("nice", str(job["nice"]) if job.get("nice") else ""),
        ("not before", text.moment(job.get("begin_at"))),
        ("cron", text.escape(job.get("cron") or "")),
        ("next run", text.moment(job.get("next_run_at"))),
        ("depends on", text.escape(job.get("dependency") or "")),
        ("comment", text.escape(job.get("comment") or "")),
    ]


def _request(job: Json) -> str:
    count = job.get("gpus", 0)
    if not count:
        return "no GPU"
    words = f"{count} GPU{'' if count == 1 else 's'}"
    if job.get("gpus_max"):
        words = f"{text.gpus_asked(job)} GPUs"
    if job.get("gpu_type"):
        words += f" of type {text.escape(job['gpu_type'])}"
    if job.get("gpu_mem_mib"):
        size = format_size(job["gpu_mem_mib"])
        words += f", a share of {size} of each" if job.get("shared") else f" with at least {size} each"
    return words


def _now(job: Json) -> list[tuple[str, str]]:
    """How things stand."""
    waits = job.get("state") == "PENDING"
    reason = f"{job.get('reason') or ''}: {job.get('reason_text') or ''}".strip(": ")
    place = f"(number {job['position']} in the queue)" if waits and job.get("position") else ""
    saved: dict[str, Any] = job.get("saved") or {}
    step = f" at step {saved['step']}" if saved.get("step") is not None else ""
    ids = text.device_ids(job)
    return [
        ("waits for", f"{text.escape(reason)} {place}".strip() if waits else ""),
        ("priority", _priority(job)),
        ("starts", text.escape(estimate.sentence(job.get("estimated_start")))),
        ("leaving", text.leaving(job)),
        ("devices", f"{ids}  ({', '.join(str(device['uuid']) for device in job['devices'])})" if ids else ""),
        ("process", str(job.get("pid") or "")),
        ("submitted", text.moment(job.get("submitted_at"))),
        ("started", text.moment(job.get("started_at"))),
        ("ended", text.moment(job.get("ended_at"))),
        ("time", text.time_of_limit(job)),
        ("waited", text.duration(job.get("waited"))),
        ("GPU time", text.duration(job.get("gpu_seconds"))),
        ("progress", text.progress(job)),
        ("speed", _speeds(job)),
        ("metrics", text.metrics(job.get("progress") or {})),
        ("saved", f"{text.escape(saved.get('checkpoint'))}{step}, {text.moment(saved.get('at'))}" if saved else ""),
        ("ended with", text.escape(job.get("exit_text") or "") if job.get("ended_at") else ""),
        ("output", text.escape(job.get("output") or "")),
        ("errors", text.escape(job.get("error_output") or "")),
        ("checkpoints", text.escape(job.get("checkpoint_dir") or "")),
        ("job files", text.escape(job.get("job_dir") or "")),
    ]


def _priority(job: Json) -> str:
    """`1128.3 = age 357.1 + fair share 808.0 + size 13.2 - nice 50.0`."""
    factors = job.get("factors")
    if not factors:
        return ""
    words = [f"{name.replace('_', ' ')} {factors[name]['points']:.1f}" for name in ("age", "fair_share", "size")]
    if nice := factors["nice"]["points"]:
        words.append(f"nice {nice:.1f}")
    return f"{factors['priority']:.1f} = {' + '.join(words)} (gpusched priority {job['job']})"


def _speeds(job: Json) -> str:
    """What an elastic job's own reports say: `12.5 steps/s on 2 GPUs, 21 on 4`."""
    told = [f"{speed['rate']:.3g} steps/s on {speed['gpus']}" for speed in job.get("speeds") or ()]
    return ", ".join(told)


def _attempt(attempt: Json) -> str:
    outcome = attempt.get("outcome")
    ids = ",".join(text.index_of(device) for device in attempt.get("devices") or ())
    end = text.moment(attempt["ended_at"]) if attempt.get("ended_at") else "now"
    line = f"  {attempt['number']:>2}  {text.moment(attempt.get('started_at') or attempt.get('created_at'))} – {end}"
    line += f"  GPUs {ids}" if ids else "  no GPU"
    if outcome is None:
        return line + "  running"
    line += f"  {_ending(outcome)}"
    if attempt.get("cause"):
        line += f", {text.escape(attempt['cause'])}"
    return line + (", saved" if attempt.get("saved") else "")


def _ending(outcome: Json) -> str:
    """How an attempt ended, in a few words."""
    words = str(outcome.get("kind", "")).replace("-", " ")
    if outcome.get("code") is not None:
        words = f"exit code {outcome['code']}"
    elif outcome.get("signal") is not None:
        words = f"signal {outcome['signal']}"
    elif outcome.get("text"):
        words += f" ({text.escape(outcome['text'])})"
    return words + (", killed at the end of its grace period" if outcome.get("killed") else "")


def _story(line: Json) -> str:
    attempt = f" [{line['attempt']}]" if line.get("attempt") else ""
    by = f" (by {text.escape(line['by'])})" if line.get("by") else ""
    return f"  {text.moment(line['at'])}{attempt}  {text.escape(line['text'])}{by}"
