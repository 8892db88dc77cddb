"""The verbs that act on jobs which exist: cancel, hold, release, requeue, preempt, checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from gpusched.cli.array_rows import count_of
from gpusched.cli.connect import connect, current_user, resolve
from gpusched.cli.output import Json, print_json
from gpusched.cli.select import JobWord, filter_options, filters_of
from gpusched.cli.settings import say, settings
from gpusched.cli.text import escape
from gpusched.client import Client
from gpusched.model.errors import GpuschedError, UsageError, from_json


def report_results(results: Sequence[Json]) -> int:
    """What was done to each job; failures on standard error. Returns the exit code: the worst of all."""
    code = 0
    for result in results:
        if not result["ok"]:
            code = max(code, _error(result).exit_code)
    if settings.json:
        print_json({"results": list(results)})
        return code
    for result in results:
        if result["ok"]:
            print(f"job {result['job']}: {escape(result['text'])}")
    sys.stdout.flush()
    for result in results:
        if not result["ok"]:
            error = _error(result)
            name = f"job {escape(result['job'])}"
            say(f"gpusched: {error.message}" if name in error.message else f"gpusched: {name}: {error.message}")
            if error.hint:
                say(f"  {error.hint}")
    return code


def _error(result: Json) -> GpuschedError:
    detail = result.get("error") or {}
    return from_json(detail if "error" in detail else {"error": {"message": result.get("text", ""), **detail}})


def _chosen(client: Client, verb: str, words: Sequence[str], everything: bool, yes: bool, options: Any) -> list[str]:
    """The keys of the jobs that were named, or that the filters select. Raises UsageError if nothing was said."""
    filters = filters_of(client, options)
    if words and (filters or everything):
        raise UsageError("jobs and filters do not go together", f"write either: gpusched {verb} 42, or: … {verb} --me")
    if words:
        return resolve(client, words)
    if not filters and not everything:
        raise UsageError(f"no job named to {verb}", f"write for example: gpusched {verb} 42, or: gpusched {verb} --me")
    if not filters.users and os.getuid() != 0:
        # Other people's jobs would only be refused. Somebody who may touch them says whose: -u.
        filters = replace(filters, users=(current_user(),))
    jobs = client.jobs(**filters.asked())
    keys, count = [str(job["job"]) for job in jobs], count_of(jobs)
    if keys and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this would {verb} {count} jobs", "add --yes to mean it")
        click.confirm(f"{verb} {count} jobs ({', '.join(keys[:8])}{', …' if len(keys) > 8 else ''})?", abort=True,
                      err=True)  # fmt: skip
    return keys


def _verb(name: str, text: str) -> click.Command:
    """A command that applies one verb of the API to jobs."""

    @click.command(name, help=text)
    @click.argument("words", metavar="[JOB]...", nargs=-1, type=JobWord())
    @filter_options
    @click.option("--all", "everything", is_flag=True, help="All my jobs (for root: everybody's).")
    @click.option("-y", "--yes", is_flag=True, help="Do not ask.")
    def command(words: tuple[str, ...], everything: bool, yes: bool, **options: Any) -> None:
        with connect(names_jobs=True) as client:
            keys = _chosen(client, name, words, everything, yes, options)
            results = client.act(name, keys) if keys else []
        if not results and not settings.json:
            say("no such jobs: nothing to do")
        click.get_current_context().exit(report_results(results))

    return command


cancel = _verb(
    "cancel",
    "Cancel jobs. A running job is asked to save and leave; at the end of its grace period it is killed. "
    "JOB is 42, 42_3 (array element), 42_[1-3], 10-12,20, @ (my last job) or @~1; or use filters.",
)
hold = _verb("hold", "Keep waiting jobs from starting until `release`.")
release = _verb("release", "Let held jobs start again.")
requeue = _verb(
    "requeue",
    "Send jobs back to the queue. A running job saves and waits again, an ended one runs again as its next attempt.",
)
preempt = _verb(
    "preempt", "Give the devices back, keep the place. A running job saves, leaves and waits for its next turn."
)
checkpoint = _verb("checkpoint", "Ask running jobs to save now and go on. Refused for a job that does not watch.")
