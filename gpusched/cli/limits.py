"""`gpusched limits`: who has what limit, and how much of it is used now."""

from __future__ import annotations

from typing import Any

import click

from gpusched.cli import text
from gpusched.cli.connect import connect, current_user
from gpusched.cli.output import Field, Json, list_options, print_field_help, print_list, repeat, style_of
from gpusched.cli.settings import say, settings
from gpusched.model.units import format_duration

_JOBS = 8  # that a table names; --json has all


def _who(row: Json) -> str:
    kind = "QoS" if row["kind"] == "qos" else row["kind"]
    whose = text.escape(f"{kind} {row['name']}")
    return f"{text.escape(row['user'])} in {whose}" if row.get("user") else whose


def _amount(row: Json, value: float | None) -> str:
    if value is None:
        return "-"
    return format_duration(value) if row["limit"] == "max_time" else f"{value:.2f}".rstrip("0").rstrip(".")


def _jobs(row: Json) -> str:
    jobs = row.get("jobs") or []
    over = set(row.get("over_quota") or ())
    named = [f"{job}*" if job in over else str(job) for job in jobs[:_JOBS]]
    more = [f"and {len(jobs) - _JOBS} more"] if len(jobs) > _JOBS else []
    return ", ".join([*named, *more]) or "-"


def _color(row: Json) -> str:
    used, most = row.get("used"), row["most"]
    return "" if used is None or used < most else "yellow"


LIMIT_FIELDS: dict[str, Field] = {
    "who": Field(value=_who),
    **{name: Field() for name in ("kind", "name", "user", "limit", "section", "over_quota")},
    "used": Field(text=lambda row: _amount(row, row.get("used")), right=True, color=_color),
    "most": Field(text=lambda row: _amount(row, row["most"]), right=True),
    "jobs": Field(text=_jobs),
}
LIMIT_COLUMNS = ("who", "limit", "used", "most", "jobs")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--me", is_flag=True, help="Only what limits me by name (as user, or inside a group, QoS, …).")
@list_options
def limits(names: tuple[str, ...], me: bool, **options: Any) -> None:
    """Show who has what limit and quota, and how much of it is used now.

    NAMES are users, groups, accounts, levels or partitions; without them, all that are named in the configuration,
    yours, and those of whoever has jobs. A job with * runs over the quota of its account.
    """
    if options["help_format"]:
        print_field_help(LIMIT_FIELDS)
        return
    style = style_of(options, LIMIT_FIELDS)
    wanted = {*names, *((current_user(),) if me else ())}
    with connect() as client:

        def show() -> None:
            found = [row for row in client.limits() if not wanted or {row["name"], row.get("user")} & wanted]
            print_list(found, LIMIT_COLUMNS, LIMIT_FIELDS, style, "limits")
            if not found and not settings.json and not style.csv:
                say(f"no limits{' for ' + ', '.join(sorted(wanted)) if wanted else ' are set'}"
                    " (an administrator sets them in the configuration: [limits.…] and [quota.…])")  # fmt: skip

        repeat(show, style.watch)
