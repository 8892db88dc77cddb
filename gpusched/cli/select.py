"""Which jobs a command is about: filters that lists and verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from gpusched.cli.connect import current_user, resolve
from gpusched.client import Client


class JobWord(click.ParamType[str]):
    """A job as people name it; completes with the ids the daemon knows."""

    name = "job"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Ask a daemon that runs, with a short deadline; never start one."""
        from gpusched.cli.connect import socket_path
        from gpusched.model.errors import GpuschedError

        try:
            with Client(socket_path(), timeout=1.0) as client:
                jobs = client.jobs()
        except GpuschedError:
            return []
        return [
            CompletionItem(job["job"], help=f"{job.get('code')} {job.get('user')} {job.get('name')}")
            for job in jobs
            if job["job"].startswith(incomplete)
        ]


def job_argument(many: bool = True) -> Callable[..., Any]:
    """The JOB… argument of a command."""
    if many:
        return click.argument("words", metavar="JOB...", nargs=-1, required=True, type=JobWord())
    return click.argument("word", metavar="JOB", type=JobWord())


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-u, --me, -s, -j and --name."""
    for option in reversed(
        (
            click.option("-u", "--user", "users", metavar="USERS", help="Only jobs of these users (a,b)."),
            click.option("--me", is_flag=True, help="Only my jobs."),
            click.option("-s", "--state", "states", metavar="STATES", help="Only these states (PENDING,R)."),
            click.option("-j", "--jobs", "keys", metavar="JOBS", help="Only these jobs (42,43_1,@).", type=JobWord()),
            click.option("--name", "name", metavar="GLOB", help="Only jobs whose name matches."),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Filters:
    users: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    name: str = ""

    def __bool__(self) -> bool:
        return bool(self.users or self.states or self.keys or self.name)

    def asked(self) -> dict[str, Any]:
        """As keyword arguments of Client.jobs and Client.history."""
        return {"users": self.users, "states": self.states, "keys": self.keys, "name": self.name}


def filters_of(client: Client, options: Mapping[str, Any]) -> Filters:
    """Take the filter options."""
    users = _list(options["users"])
    if options["me"]:
        users = (*users, current_user())
    states = tuple(state.upper() for state in _list(options["states"]))
    keys = tuple(resolve(client, [options["keys"]])) if options["keys"] else ()
    return Filters(users, states, keys, options["name"] or "")


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()
