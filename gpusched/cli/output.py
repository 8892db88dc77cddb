"""Lists on standard output: tables for people, CSV and JSON for programs, repeated with --watch.

Nothing is cut when it is piped. Everything that is not data goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from gpusched.cli.settings import paint, say, settings
from gpusched.cli.text import escape
from gpusched.model.errors import Unavailable, UsageError, known

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that can be shown of a row. `text` is for people; `value` for programs (default: the row's own)."""

    text: Callable[[Json], str] | None = None
    value: Callable[[Json], Any] | None = None
    header: str = ""
    right: bool = False
    color: Callable[[Json], str] | None = None


Fields = Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class Style:
    """How a list was asked for."""

    csv: bool = False
    noheader: bool = False
    fields: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    watch: float | None = None


# What a narrow terminal can do without, the first first.
_LEAST_WANTED = (
    "progress", "gpu_hours", "preempted", "user", "start", "gpus", "qos", "exit", "elapsed", "time",
    "mean_first_wait_s", "lost_gpu_s", "makespan_s", "mean_wait_s", "worst_rho",  # of simulate
)  # fmt: skip


def list_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options every list has. The command gets them as keyword arguments and makes a Style with `style_of`."""
    for option in reversed(
        (
            click.option("--format", "fields", metavar="FIELDS", help="Show these fields; see --help-format."),
            click.option("--help-format", is_flag=True, help="List the fields that --format and --sort know."),
            click.option("--csv", is_flag=True, help="Comma-separated values, as --json has them."),
            click.option("--noheader", is_flag=True, help="No line of column names and no summary."),
            click.option("--sort", metavar="FIELDS", help="Sort by these fields; -FIELD sorts downwards."),
            click.option(
                "--watch", type=click.FloatRange(min=0.1), is_flag=False, flag_value=2.0, metavar="[SEC]",
                help="Show it again every SEC seconds (2 if not given).",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def style_of(options: Mapping[str, Any], fields: Fields) -> Style:
    """Take the list options and check the field names. Raises UsageError that lists the known ones."""
    check_one_form(options["csv"])
    chosen = _names(options["fields"], fields)
    order = tuple(options["sort"].replace(" ", "").split(",")) if options["sort"] else ()
    for name in order:
        _names(name.lstrip("-"), fields)
    return Style(options["csv"], options["noheader"], chosen, order, options["watch"])


def check_one_form(csv: bool) -> None:
    """Raises UsageError if both --csv and --json were asked for."""
    if csv and settings.json:
        raise UsageError("--csv and --json do not go together", "leave one of them away: both have every figure")


def _names(text: str | None, fields: Fields) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in fields:
            raise known("field", name, list(fields))
    return names


def print_field_help(fields: Fields) -> None:
    """What --help-format shows: one field name a line."""
    for name in sorted(fields):
        print(name)


def value_of(row: Json, name: str, fields: Fields) -> Any:
    field = fields[name]
    return field.value(row) if field.value else row.get(name)


def texts_of(rows: Sequence[Json], name: str, fields: Fields) -> list[str]:
    """One column for people."""
    field = fields[name]
    if field.text is not None:
        return [field.text(row) for row in rows]
    return [_text(value) for value in map(field.value or (lambda row: row.get(name)), rows)]


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    return "-" if value is None or value == "" else escape(value)


def sorted_rows(rows: Sequence[Json], order: Sequence[str], fields: Fields) -> list[Json]:
    """Stable, the last key first; what has no value comes last, whichever way."""
    result = list(rows)
    for key in reversed(order):
        name = key.lstrip("-")
        known_rows = [row for row in result if value_of(row, name, fields) is not None]
        unknown = [row for row in result if value_of(row, name, fields) is None]

        def sort_key(row: Json, name: str = name) -> Any:
            value = value_of(row, name, fields)
            return json.dumps(value) if isinstance(value, (dict, list)) else value

        known_rows.sort(key=sort_key, reverse=key.startswith("-"))
        result = known_rows + unknown
    return result


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_list(rows: Sequence[Json], default: Sequence[str], fields: Fields, style: Style, key: str) -> None:
    """Print rows as asked. `key` names the list in JSON: `{"jobs": […]}`."""
    rows = sorted_rows(rows, style.sort, fields) if style.sort else rows
    names = style.fields or tuple(default)
    if settings.json:
        picked = [{name: value_of(row, name, fields) for name in names} for row in rows] if style.fields else rows
        print_json({key: list(picked)})
    elif style.csv:
        _print_csv(rows, names, fields, style.noheader)
    else:
        _print_table(rows, names, fields, style)


def csv_cell(value: Any) -> str:
    """One value for a spreadsheet, which must not take a job's name for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    if isinstance(value, str):
        shown = escape(value)
        return "'" + shown if shown.startswith(("=", "+", "-", "@")) else shown
    return str(value)


def _print_csv(rows: Iterable[Json], names: Sequence[str], fields: Fields, noheader: bool) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not noheader:
        writer.writerow(names)
    writer.writerows([csv_cell(value_of(row, name, fields)) for name in names] for row in rows)


def _print_table(rows: Sequence[Json], names: Sequence[str], fields: Fields, style: Style) -> None:
    """Column by column, because a queue may have ten thousand rows."""
    headers = [] if style.noheader else [[fields[name].header or name.upper()] for name in names]
    columns = [texts_of(rows, name, fields) for name in names]
    if headers:
        columns = [header + column for header, column in zip(headers, columns, strict=True)]
    widths = [max(map(cell_width, column), default=0) for column in columns]
    if sys.stdout.isatty():
        kept = _fit(widths, names, may_drop=not style.fields)
        names, columns = [names[place] for place in kept], [columns[place] for place in kept]
        widths = [widths[place] for place in kept]
    colored = settings.color(sys.stdout)
    for place, (name, width) in enumerate(zip(names, widths, strict=True)):
        columns[place] = _padded(columns[place], width, fields[name].right)
        color = fields[name].color
        if colored and color is not None:
            skipped = [""] if headers else []
            colors = [*skipped, *map(color, rows)]
            columns[place] = [paint(cell, color) for cell, color in zip(columns[place], colors, strict=True)]
    lines = [line.rstrip() for line in map("  ".join, zip(*columns, strict=True))]
    if lines:
        print("\n".join(lines))


def _padded(cells: list[str], width: int, right: bool) -> list[str]:
    """All cells of a column at its width; longer ones cut (only on a terminal are there any)."""
    return [_fitted(cell, width, right) for cell in cells]


def _fitted(cell: str, width: int, right: bool) -> str:
    if cell.isascii():
        cell = cell if len(cell) <= width else cell[: max(0, width - 1)] + "…"
        return cell.rjust(width) if right else cell.ljust(width)
    if cell_width(cell) > width:
        while cell and cell_width(cell) > width - 1:
            cell = cell[:-1]
        cell += "…"
    blank = " " * (width - cell_width(cell))
    return blank + cell if right else cell + blank


def cell_width(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian letters and emoji two, combining marks none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(char) in "WF" else 0 if combining(char) else 1 for char in text)


def _fit(widths: list[int], names: Sequence[str], may_drop: bool) -> list[int]:
    """On a terminal, shorten the name and then the last column until a row fits on a line.

    Where that is not enough and nobody has chosen the columns, leave some out. Returns the places of those that stay.
    """
    from shutil import get_terminal_size

    over, last = sum(widths) + 2 * (len(widths) - 1) - get_terminal_size()[0], widths[-1]
    places = [names.index("name")] if "name" in names else []
    for place, least in [*((place, 12) for place in places), (len(widths) - 1, 20)]:
        cut = max(0, min(over, widths[place] - least))
        widths[place] -= cut
        over -= cut
    kept = list(range(len(widths)))
    for name in _LEAST_WANTED if may_drop else ():
        if over > 0 and name in names[:-1]:
            kept.remove(names.index(name))
            over -= widths[names.index(name)] + 2
    if len(kept) < len(widths):
        widths[-1] = min(last, max(8, widths[-1] - over))  # of what is left of the line as much as it needs
    return kept


def repeat(show: Callable[[], None], every: float | None) -> None:
    """Call `show` once, or every so many seconds until Ctrl-C; then a daemon that is away is waited for."""
    if every is None:
        show()
        return
    screen = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    try:
        while True:
            if screen:
                print("\x1b[H\x1b[2J", end="")
            try:
                show()
            except Unavailable as error:
                say(f"gpusched: {error.message} (trying again)")
            sys.stdout.flush()
            time.sleep(every)
    except KeyboardInterrupt:
        return
