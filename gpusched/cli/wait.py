"""`gpusched wait JOB…`, and waiting as `run` and `submit --wait` do it: quietly alive, and patient with the daemon."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click

from gpusched.cli.connect import connect, resolve
from gpusched.cli.output import Json, print_json
from gpusched.cli.select import job_argument
from gpusched.cli.settings import say, settings
from gpusched.cli.text import escape
from gpusched.client import Client
from gpusched.model.errors import Unavailable
from gpusched.model.units import parse_seconds

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "LOST"})
TIMED_OUT = 124
_TOLD = 10  # of more jobs than this only those that did not succeed are named
PATIENCE = 60.0  # seconds to wait for a daemon that has gone away


class Alive:
    """A line on standard error that shows on a terminal that something is going on; wiped when it is done."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty()
        self.started = time.monotonic()
        self.shown = False

    def show(self, text: str) -> None:
        now = time.monotonic() - self.started
        if self.tty and now > 1.0:
            spinner = "|/-\\"[int(now * 4) % 4]
            from shutil import get_terminal_size

            width = get_terminal_size()[0] - 4
            print(f"\r\x1b[K{spinner} {text[:width]}", end="", file=sys.stderr, flush=True)
            self.shown = True

    def wipe(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.shown = False


class Patience:
    """Calls the daemon again and again while it is away: jobs outlive it, and it usually comes back in seconds."""

    def __init__(self, alive: Alive, hint: str) -> None:
        self.alive = alive
        self.hint = hint  # how to find the jobs later
        self.since: float | None = None

    def call(self, ask: Callable[[], Json]) -> Json | None:
        """The answer; None while the daemon is away. Raises Unavailable with the hint when patience is at its end."""
        try:
            answer = ask()
        except Unavailable as error:
            now = time.monotonic()
            if self.since is None:
                self.since = now
                self.alive.wipe()
                say("gpusched: the daemon does not answer; jobs go on without it, trying again …")
            if now - self.since > PATIENCE:
                raise Unavailable(error.message, self.hint) from None
            time.sleep(0.2)
            return None
        if self.since is not None:
            say("gpusched: the daemon answers again")
            self.since = None
        return answer


@click.command()
@job_argument()
@click.option("--timeout", metavar="TIME", help="Give up after this time (90s, 10m) and exit with 124.")
def wait(words: tuple[str, ...], timeout: str | None) -> None:
    """Wait until jobs have ended.

    The exit code is the job's own (128+signal, 124 after its time limit); of several jobs the highest.
    """
    limit = parse_seconds(timeout) if timeout is not None else None
    with connect(names_jobs=True) as client:
        keys = resolve(client, words)
        jobs, code = wait_for(client, keys, limit)
    if settings.json:
        print_json({"jobs": jobs})
    elif code == TIMED_OUT and any(job["state"] not in FINAL for job in jobs):
        say(f"gpusched: not ended after {timeout}: " + ", ".join(j["job"] for j in jobs if j["state"] not in FINAL))
    else:
        for job in jobs if len(jobs) <= _TOLD else [job for job in jobs if job.get("exit_status")]:
            said = job.get("exit_text") or ""
            say(f"job {job['job']} {job['state']}" + (f": {escape(said)}" if said else ""))
    click.get_current_context().exit(code)


def elements(answer: Json) -> list[Json]:
    """The jobs of an answer about a job or a whole array."""
    return list(answer["elements"]) if "elements" in answer else [answer]


def wait_for(client: Client, keys: Sequence[str], limit: float | None = None) -> tuple[list[Json], int]:
    """The jobs as they stand at the end, and the exit code: the highest, or 124 if `limit` seconds have passed."""
    alive = Alive()
    patience = Patience(alive, f"look later: gpusched show {' '.join(keys)}")
    deadline = None if limit is None else time.monotonic() + limit
    found: list[Json] = []
    code = 0
    for key in keys:
        jobs = _wait_one(client, key, deadline, alive, patience)
        found += jobs
        ended = [job.get("exit_status") or 0 for job in jobs if job["state"] in FINAL]
        code = max([code, *ended, *([TIMED_OUT] if len(ended) < len(jobs) else [])])
    alive.wipe()
    return found, code


def _wait_one(client: Client, key: str, deadline: float | None, alive: Alive, patience: Patience) -> list[Json]:
    """Until the job (or every element) has ended, or the deadline has passed."""
    while True:
        # On a terminal the daemon is asked often, so that the line moves; elsewhere one question lasts.
        step = 0.25 if alive.tty else 30.0
        if deadline is not None:
            step = max(0.0, min(step, deadline - time.monotonic()))
        answer = patience.call(lambda step=step: client.wait(key, step))  # type: ignore[misc]
        if answer is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable("the daemon does not answer", patience.hint)
            continue
        jobs = elements(answer)
        open_jobs = [job for job in jobs if job["state"] not in FINAL]
        if not open_jobs or (deadline is not None and time.monotonic() >= deadline):
            return jobs
        alive.show(waiting_text(open_jobs[0], sum(job.get("array_count") or 1 for job in open_jobs)))


def waiting_text(job: Json, count: int = 1) -> str:
    """One line about a job that has not ended."""
    from gpusched.cli import text

    more = f" (and {count - 1} more)" if count > 1 else ""
    if job["state"] == "PENDING":
        return f"job {job['job']} waits {text.where(job)}{more}"
    doing = text.progress(job)
    return f"job {job['job']} {job['state']} {text.time_of_limit(job)}{'' if doing == '-' else '  ' + doing}{more}"
