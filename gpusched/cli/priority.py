"""`gpusched priority` and `gpusched shares`: why the waiting jobs stand in this order, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from gpusched.cli import text
from gpusched.cli.array_rows import fold_arrays
from gpusched.cli.connect import connect, resolve
from gpusched.cli.output import (
    Field,
    Json,
    Style,
    list_options,
    print_field_help,
    print_json,
    print_list,
    repeat,
    style_of,
)
from gpusched.cli.select import JobWord
from gpusched.cli.settings import paint, say, settings

DAY = 86400.0
_FACTORS = ("age", "fair_share", "size", "nice")


def _number(value: float) -> str:
    return f"{value + 0.0:.1f}"  # and not -0.0


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _points(name: str) -> Field:
    return Field(
        text=lambda row: _number(row[name]["points"]), value=lambda row: row[name]["points"], right=True
    )


PRIORITY_FIELDS: dict[str, Field] = {
    **{name: Field() for name in ("id", "name", "user", "account", "qos", "partition", "overdue")},
    "job": Field(header="JOBID", right=True),
    "position": Field(header="PLACE", right=True),
    "level": Field(right=True),
    "gpus": Field(right=True),
    "priority": Field(text=lambda row: _number(row["priority"]), right=True),
    **{name: _points(name) for name in _FACTORS},
    "factor": Field(text=lambda row: f"{row['fair_share']['value']:.3f}", value=lambda row: row["fair_share"]["value"]),
}
PRIORITY_COLUMNS = ("position", "job", "user", "account", "qos", "level", "priority", *_FACTORS)
SHARE_FIELDS: dict[str, Field] = {
    "account": Field(),
    "shares": Field(text=lambda row: f"{row['shares']:g}", right=True),
    "share": Field(text=lambda row: _percent(row["share"]), right=True),
    "gpu_hours": Field(
        text=lambda row: f"{row['device_seconds'] / 3600:.2f}", value=lambda row: row["device_seconds"] / 3600,
        right=True,
    ),
    "device_seconds": Field(text=lambda row: f"{row['device_seconds']:.0f}", right=True),
    "part": Field(text=lambda row: _percent(row["part"]), header="USED", right=True),
    "factor": Field(text=lambda row: f"{row['factor']:.3f}", right=True),
    "running": Field(right=True),
    "waiting": Field(right=True),
}
SHARE_COLUMNS = ("account", "shares", "share", "gpu_hours", "part", "factor", "running", "waiting")


@click.command()
@click.argument("words", metavar="[JOB]...", nargs=-1, type=JobWord())
@list_options
def priority(words: tuple[str, ...], **options: Any) -> None:
    """Show why the waiting jobs stand in this order.

    Level of service first, then the priority: points for age and size, for an account that has used little lately,
    less --nice. With JOBs, these in sentences.
    """
    if options["help_format"]:
        print_field_help(PRIORITY_FIELDS)
        return
    style = style_of(options, PRIORITY_FIELDS)
    with connect(names_jobs=bool(words)) as client:

        def show() -> None:
            answer = client.priorities(resolve(client, words) if words else ())
            if settings.json and not (style.fields or style.sort):
                print_json(answer)
            elif words and not settings.json and style == Style(watch=style.watch):
                print("\n\n".join("\n".join(_sentences(row, answer)) for row in answer["jobs"]))
            else:
                rows = [{**row, "state": "PENDING", "reason": f"{row['priority']:.0f}"} for row in answer["jobs"]]
                print_list(fold_arrays(rows), PRIORITY_COLUMNS, PRIORITY_FIELDS, style, "jobs")
                _say_if_none(rows, "no job waits", style)
            if not settings.json and not style.csv and not answer["by_priority"]:
                say(_other_policy(answer))

        repeat(show, style.watch)


@click.command()
@list_options
def shares(**options: Any) -> None:
    """Show what accounts have used lately and what they may.

    Use counts in GPU-hours that decay; an account that has used its share has a factor of one half.
    """
    if options["help_format"]:
        print_field_help(SHARE_FIELDS)
        return
    style = style_of(options, SHARE_FIELDS)
    with connect() as client:

        def show() -> None:
            answer = client.shares()
            if settings.json and not (style.fields or style.sort):
                print_json(answer)
                return
            rows = sorted(answer["accounts"], key=lambda row: (-row["device_seconds"], row["account"]))
            print_list(rows, SHARE_COLUMNS, SHARE_FIELDS, style, "accounts")
            _say_if_none(rows, "no account has used anything lately", style)
            if not settings.json and not style.csv and not answer["by_priority"]:
                say(_other_policy(answer))

        repeat(show, style.watch)


def _say_if_none(rows: Sequence[Json], sentence: str, style: Style) -> None:
    if not (rows or settings.json or style.csv or style.noheader):
        say(sentence)


def _other_policy(answer: Json) -> str:
    return f"gpusched: the policy here is {answer['policy']!r}, which does not go by these numbers"


def _sentences(row: Json, answer: Json) -> list[str]:
    """One job's priority, a line for each factor."""
    place = f"is number {row['position']} of {answer['waiting']}" if row["position"] else "is not among those"
    title = f"job {row['job']}  {text.escape(row['name'])}  {text.escape(row['user'])}"
    level = f"in QoS {text.escape(row['qos'])} (level {row['level']})"
    lines = [f"{paint(title, 'bold')}  {place} that wait for devices, {level}"]
    if row["overdue"]:
        lines.append("  it has waited so long that it goes before the others of its level, whatever the numbers say")
    told = (_age(row, answer), _fair_share(row), _size(row), _nice(row))
    lines += [
        f"  {name.replace('_', ' '):<10} {_number(row[name]['points']):>8}  {sentence}"
        for name, sentence in zip(_FACTORS, told, strict=True)
    ]
    return [*lines, f"  {paint('priority', 'bold'):<10} {_number(row['priority']):>8}"]


def _age(row: Json, answer: Json) -> str:
    age = row["age"]
    if not age["value"]:
        waits = "it has just begun to wait" if row["position"] else "it waits for something else than devices"
        return f"{waits}; {age['weight']:g} points for every {answer['age_days']:g} days"
    waited = text.duration(age["value"] * answer["age_days"] * DAY)
    return f"it has waited {waited}; {age['weight']:g} points for every {answer['age_days']:g} days"


def _fair_share(row: Json) -> str:
    fair = row["fair_share"]
    used = f"account {text.escape(row['account'])} has used {_percent(fair['part'])} of everything lately"
    return f"{used} and has {_percent(fair['share'])} of the shares: {fair['value']:.3f} of {fair['weight']:g} points"


def _size(row: Json) -> str:
    size = row["size"]
    if not row["gpus"]:
        return "it needs no device"
    what = f"{row['gpus']} device{'' if row['gpus'] == 1 else 's'}"
    what = f"{what}, {_percent(size['value'])} of partition {text.escape(row['partition'])}"
    if not size["weight"]:
        return f"{what}; size does not count here"
    return f"{what}, for all of which there are {size['weight']:g} points"


def _nice(row: Json) -> str:
    nice = -row["nice"]["value"]
    if not nice:
        return "no --nice"
    return f"--nice {nice:g}, {row['nice']['weight']:g} point{'' if row['nice']['weight'] == 1 else 's'} for each step"
