"""`gpusched history`: jobs that have ended, as sacct lists them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import click

from gpusched.cli.connect import connect, current_user
from gpusched.cli.job_fields import HISTORY_COLUMNS, JOB_FIELDS
from gpusched.cli.output import list_options, print_field_help, print_list, repeat, style_of
from gpusched.cli.select import filter_options, filters_of
from gpusched.cli.settings import say, settings
from gpusched.cli.submission import local_now
from gpusched.model.errors import UsageError
from gpusched.model.units import parse_seconds

_DAY = 86400.0


def parse_past(text: str, now: datetime) -> float:
    """A moment in the past, in seconds since the epoch: `7d` (ago), `09:00`, `yesterday`, `2026-11-01`, ISO."""
    words = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if words in ("now", "today", "yesterday"):
        return {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}[words].timestamp()
    try:
        if words.isascii() and words[:1].isdigit() and words[-1:] in "wdhms" and "t" not in words:
            return now.timestamp() - parse_seconds(words)
        if ":" in words and "-" not in words:
            clock = datetime.strptime(words, "%H:%M:%S" if words.count(":") > 1 else "%H:%M")
            moment = midnight.replace(hour=clock.hour, minute=clock.minute, second=clock.second)
            return (moment if moment <= now else moment - timedelta(days=1)).timestamp()
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=now.tzinfo)).timestamp()
    except ValueError:
        raise UsageError(
            f"time {text!r} cannot be read", "write for example 7d or 12h (ago), 09:00, yesterday or 2026-11-01"
        ) from None


@click.command()
@filter_options
@click.option("-a", "--all", "everybody", is_flag=True, help="Jobs of all users, not just mine.")
@click.option("-S", "--since", metavar="TIME", help="Ended after this: 7d (ago), yesterday, 2026-11-01 (default 24h).")
@click.option("-E", "--until", metavar="TIME", help="Ended before this.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many jobs.")
@list_options
def history(everybody: bool, since: str | None, until: str | None, limit: int | None, **options: Any) -> None:
    """List jobs that have ended.

    The latest first; my own of the last 24 hours, if nothing else is said.
    """
    if options["help_format"]:
        print_field_help(JOB_FIELDS)
        return
    style = style_of(options, JOB_FIELDS)
    with connect() as client:
        filters = filters_of(client, options)
        if not filters.users and not everybody and not filters.keys:
            filters = replace(filters, users=(current_user(),))

        def show() -> None:
            now = local_now()
            begin = parse_past(since, now) if since else None if filters.keys else now.timestamp() - _DAY
            end = parse_past(until, now) if until else None
            jobs = client.history(**filters.asked(), since=begin, until=end, limit=limit)
            print_list(jobs, HISTORY_COLUMNS, JOB_FIELDS, style, "jobs")
            if not jobs and not settings.json and not style.csv:
                say("no jobs ended in that time (more: gpusched history -a -S 30d)")

        repeat(show, style.watch)
