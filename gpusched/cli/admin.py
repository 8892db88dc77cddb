"""`gpusched admin reserve|reservations|unreserve`: what only an administrator may do (everybody may look)."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click

from gpusched.cli import text
from gpusched.cli.connect import connect
from gpusched.cli.options import Grammar
from gpusched.cli.output import (
    Field,
    Json,
    list_options,
    print_field_help,
    print_json,
    print_list,
    repeat,
    style_of,
)
from gpusched.cli.settings import say, settings
from gpusched.cli.submission import begin_time, local_now
from gpusched.model.errors import GpuschedError, UsageError, from_json
from gpusched.model.reservation import Repeat
from gpusched.model.units import parse_duration


@click.group()
def admin() -> None:
    """Reserve devices for some users, and look at the reservations."""


def _duration(words: str) -> float:
    seconds = parse_duration(words)
    if seconds is None:
        raise UsageError(f"a reservation of {words!r} would have no length or no end", "for example --duration 8h")
    return seconds


def _names(words: str) -> list[str]:
    names = [name.strip() for name in words.split(",")]
    if not all(names):
        raise UsageError(f"{words!r} names nothing in one place", "write for example: ann,bob")
    return names


_LIST = Grammar("names", _names)


@admin.command()
@click.argument("name")
@click.option("--devices", type=_LIST, metavar="LIST", help="These devices, by index or UUID: 0,1.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="So many devices: those that are free first.")
@click.option("--gpu-type", metavar="GLOB", help="With --count: only GPUs with such a name.")
@click.option("--start", required=True, metavar="TIME",
              help="When it begins: now, 09:00, 'tomorrow 09:00', 2026-12-24T18:00.")
@click.option("--duration", required=True, type=Grammar("time", _duration), metavar="TIME",
              help="How long: 8h, 2:00:00, 1-12:00:00, 90 (minutes).")
@click.option("--users", type=_LIST, metavar="LIST", help="For these users: ann,bob.")
@click.option("--accounts", type=_LIST, metavar="LIST", help="For these accounts: vision.")
@click.option("--repeat", "again", type=click.Choice([str(each) for each in Repeat]), help="Again every day or week.")
@click.option("--comment", default="", help="What it is for.")
def reserve(name: str, **options: Any) -> None:
    """Keep devices for some users and accounts. For nobody: maintenance.

    Their jobs use it with: gpusched submit --reservation NAME. When it begins, all others are asked to save and leave.
    """
    start = begin_time(options["start"])
    body: Json = {"name": name, "start": start, "duration": options["duration"], "comment": options["comment"]}
    body |= {word: options[word] for word in ("devices", "count", "users", "accounts") if options[word]}
    if options["gpu_type"]:
        from gpusched.cli.options import gpu_glob

        body["gpu_type"] = gpu_glob(options["gpu_type"])
    if options["again"]:
        body |= {"repeat": options["again"]}
    with connect() as client:
        answer = client.reserve({**body, "zone": zone_name()})
    if settings.json:
        print_json(answer["reservation"])
    else:
        print(f"reservation {text.escape(name)}: {text.escape(answer['text'])}")


def zone_name() -> str:
    """The name of this machine's time zone, by which a reservation repeats; its distance from UTC if it has none."""
    from zoneinfo import ZoneInfo

    from tzlocal import get_localzone_name

    now = datetime.now().timestamp()
    away = local_now().utcoffset()
    try:
        name = get_localzone_name()
        if name and datetime.fromtimestamp(now, ZoneInfo(name)).utcoffset() == away:
            return str(name)
    except (LookupError, ValueError, OSError):
        pass  # a TZ that no database knows
    minutes = round(away.total_seconds() / 60) if away is not None else 0
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _for_whom(row: Json) -> str:
    who = [*row["users"], *(f"account {name}" for name in row["accounts"])]
    return text.escape(", ".join(who)) or "maintenance"


def _indexes(row: Json) -> str:
    return ",".join("?" if device["index"] is None else str(device["index"]) for device in row["devices"])


_STATE_COLORS = {"active": "green", "to come": "yellow", "over": "dim"}
FIELDS: dict[str, Field] = {
    **{name: Field() for name in ("name", "repeat", "zone", "comment", "by", "users", "accounts", "when")},
    **{
        name: Field(text=lambda row, name=name: text.moment(row.get(name)))  # type: ignore[misc]
        for name in ("start_at", "end_at", "made_at", "ended_at")
    },
    "state": Field(color=lambda row: _STATE_COLORS.get(str(row.get("state")), "")),
    "devices": Field(text=_indexes),
    "duration": Field(text=lambda row: text.duration(row.get("duration")), right=True),
    "for": Field(text=_for_whom, value=_for_whom),
    "jobs": Field(text=lambda row: ",".join(row.get("jobs") or ()) or "-"),
    "trouble": Field(text=lambda row: text.escape("; ".join(row.get("trouble") or ())) or "-",
                     color=lambda row: "red" if row.get("trouble") else ""),
}  # fmt: skip
COLUMNS = ("name", "state", "devices", "for", "when", "jobs", "comment")


@admin.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that are over.")
@list_options
def reservations(everything: bool, **options: Any) -> None:
    """Show what is reserved, for whom and when, and the devices of it that are in trouble."""
    if options["help_format"]:
        print_field_help(FIELDS)
        return
    style = style_of(options, FIELDS)
    with connect() as client:

        def show() -> None:
            rows = client.reservations(everything)
            told = ("trouble",) if any(row["trouble"] for row in rows) else ()
            print_list(rows, (*COLUMNS[:-1], *told, COLUMNS[-1]), FIELDS, style, "reservations")
            if not rows and not settings.json:
                say("nothing is reserved")
            sys.stdout.flush()

        repeat(show, options["watch"])


@admin.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def unreserve(names: tuple[str, ...]) -> None:
    """Take reservations back, active or to come. Their jobs go on as ordinary jobs."""
    with connect() as client:
        results = client.unreserve(names)
    code = 0
    if settings.json:
        print_json({"results": results})
    for result in results:
        if result["ok"]:
            if not settings.json:
                print(f"reservation {text.escape(result['name'])}: {text.escape(result['text'])}")
            continue
        error: GpuschedError = from_json(result)
        code = max(code, error.exit_code)
        if not settings.json:
            say(f"gpusched: {error.message}")
            say(f"  {error.hint}")
    click.get_current_context().exit(code)
