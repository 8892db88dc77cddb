"""`gpusched logs JOB`: the output of a job. The file is opened here, as the user."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import click

from gpusched.cli.array_rows import count_of
from gpusched.cli.connect import connect, one_job
from gpusched.cli.follow import Tail, last_lines
from gpusched.cli.output import Json
from gpusched.cli.select import job_argument
from gpusched.cli.text import escape
from gpusched.cli.wait import FINAL, elements
from gpusched.client import Client
from gpusched.model.errors import NotFound, Refused, UsageError

# The line that the daemon has written between the attempts of one job (gpusched/daemon/perform.py).
_DIVIDER = re.compile(rb"^---- gpusched: job \S+, attempt (\d+) ----$")


@click.command()
@job_argument(many=False)
@click.option("-f", "--follow", is_flag=True, help="Show what is added until the job has ended.")
@click.option("-n", "--lines", "lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only the output of attempt N.")
@click.option("--stderr", "errors", is_flag=True, help="The errors, of a job that writes them to a file of their own.")
def logs(word: str, follow: bool, lines: int | None, attempt: int | None, errors: bool) -> None:
    """Show the output of a job.

    Of an array: of each element that has started.
    """
    if follow and attempt is not None:
        raise UsageError("--follow and --attempt do not go together", "leave --attempt away to follow the job")
    with connect(names_jobs=True) as client:
        key = one_job(client, word)
        found = elements(client.job(key))
        if follow:
            if (count := count_of(found)) != 1:
                raise UsageError(f"{key} is an array of {count} jobs", f"follow one: gpusched logs -f {key}_N")
            _follow(client, found[0], lines, errors)
            return
    started = [job for job in found if job.get("attempt")]
    if not started:
        raise Refused(f"job {key} has not started yet: there is no output", f"see: gpusched why {key}")
    for job in started:
        if len(found) > 1:
            _heading(job, _path(job, errors))
        _print(job, lines, attempt, errors)


def _heading(job: Json, path: str) -> None:
    sys.stdout.flush()
    print(f"==> {job['job']} {escape(path)} <==", flush=True)


def _path(job: Json, errors: bool) -> str:
    path = job.get("error_output") if errors else job.get("output")
    if not path:
        raise Refused(
            f"job {job['job']} has no {'error file of its own' if errors else 'output'}",
            f"its output and errors are in one file: gpusched logs {job['job']}" if errors else "see: gpusched show",
        )
    return str(path)


def _follow(client: Client, job: Json, lines: int | None, errors: bool) -> None:
    from gpusched.cli.run import INTERRUPTED, Foreground

    begin = last_lines(_path(job, errors), lines) if lines is not None and job.get("attempt") else 0
    only = "error_output" if errors else "output"
    watcher = Foreground(client, str(job["job"]), begin, quiet=job["state"] in FINAL, only=only)
    if watcher.follow() == INTERRUPTED:
        click.get_current_context().exit(INTERRUPTED)


def _print(job: Json, lines: int | None, attempt: int | None, errors: bool) -> None:
    path = _path(job, errors)
    if attempt is not None:
        _print_attempt(job, path, lines, attempt, errors)
        return
    tail = Tail(sys.stdout.buffer, last_lines(path, lines) if lines is not None else 0)
    sys.stdout.flush()
    tail.switch(path)
    tail.copy()
    if tail.fd < 0:
        raise NotFound(f"the output {path} is not there", "it has been moved or deleted since the job started")
    tail.close()


def _print_attempt(job: Json, path: str, lines: int | None, attempt: int, errors: bool) -> None:
    """The part of one attempt: between two dividers, or a file of its own where the name has %r."""
    if attempt > (job.get("attempt") or 0):
        raise NotFound(f"job {job['job']} has had {job.get('attempt')} attempts", "choose one of them")
    path = _path_of_attempt(job, attempt, path, errors)
    chosen = list(_between(_lines(path), attempt))
    sys.stdout.flush()
    sys.stdout.buffer.writelines(chosen if lines is None else chosen[len(chosen) - min(lines, len(chosen)) :])
    sys.stdout.buffer.flush()


def _path_of_attempt(job: Json, number: int, path: str, errors: bool) -> str:
    """Where the daemon says that this attempt wrote (a name with %r differs); else the one file of all attempts."""
    for attempt in job.get("attempts") or ():
        if attempt["number"] == number:
            return str(attempt.get("error_output" if errors else "output") or path)
    return path


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            yield from file
    except OSError as error:
        raise NotFound(f"the output {path} cannot be read: {error.strerror}", "see: gpusched show JOB") from None


def _between(lines: Iterator[bytes], attempt: int) -> Iterator[bytes]:
    """The lines of one attempt. What stands before the first divider belongs to attempt 1."""
    present = 1
    for line in lines:
        if found := _DIVIDER.match(line.rstrip(b"\n")):
            present = int(found[1])
        elif present == attempt:
            yield line
