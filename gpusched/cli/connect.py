"""From a command to the daemon: the connection (starting a personal daemon if need be) and the jobs people name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpusched import paths
from gpusched.cli.settings import settings
from gpusched.client import Client
from gpusched.model.errors import NotFound, Unavailable, UsageError

if TYPE_CHECKING:
    from gpusched.model.jobset import Last


def socket_path() -> str:
    return settings.socket or paths.socket_path()


def connect(start: bool = True, names_jobs: bool = False) -> Client:
    """A client with an open connection.

    start: a personal daemon that is not running is started (never the system's, and never one named by --socket).
    names_jobs: the command is about jobs that exist already; where no daemon has ever run there are none, so none is
    started. Raises Unavailable with the command that helps.
    """
    client = Client(socket_path())
    try:
        client.open()
    except Unavailable as error:
        if not start:
            raise
        from gpusched.cli import autostart

        if not autostart.allowed():
            raise _explained(error) from None
        if names_jobs and not os.path.exists(paths.state_dir()):
            raise Unavailable(
                "no daemon runs here and none ever has: there are no jobs",
                "submit one with: gpusched submit -- COMMAND",
            ) from None
        autostart.start()
        client.open()
    return client


def _explained(error: Unavailable) -> Unavailable:
    """The same error with the next step for this kind of daemon."""
    if socket_path() == paths.SYSTEM_SOCKET:
        return Unavailable(
            error.message,
            "it is the machine's own service; start it with: sudo systemctl start gpusched (or ask the administrator)",
        )
    return error


def resolve(client: Client, words: Iterable[str]) -> list[str]:
    """The job keys that people's words name; `@` and `@~1` are asked of the daemon. Raises UsageError, NotFound."""
    from gpusched.model.jobset import Last, parse_job_set

    parts = parse_job_set(words)
    latest = client.last() if any(isinstance(part, Last) for part in parts) else []
    return list(dict.fromkeys(part if isinstance(part, str) else _last(part, latest) for part in parts))


def _last(part: Last, latest: Sequence[str]) -> str:
    if part.back >= len(latest):
        asked = f"@~{part.back}" if part.back else "@"
        raise NotFound(
            f"{asked} names no job: the daemon knows of {len(latest)} submits of yours",
            "list your jobs with: gpusched queue --me, or: gpusched history",
        )
    key = latest[part.back]
    return key if part.elements is None else f"{key}_{part.elements}"


def one_job(client: Client, word: str) -> str:
    """The key of exactly one job (or one whole array)."""
    keys = resolve(client, [word])
    if len(keys) > 1:
        raise UsageError(f"{word!r} names {len(keys)} jobs, this command takes one", "write for example: 42 or @")
    return keys[0]


def current_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
