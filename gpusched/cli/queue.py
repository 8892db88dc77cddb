"""`gpusched queue` (q, ps): what runs and what waits, in scheduling order; bare `gpusched` is its short form."""

from __future__ import annotations

from typing import Any

import click

from gpusched.cli.array_rows import count_of, each_element, fold_arrays
from gpusched.cli.connect import connect
from gpusched.cli.job_fields import JOB_FIELDS, QUEUE_KEYS, queue_columns
from gpusched.cli.output import Style, list_options, print_field_help, print_list, repeat, style_of
from gpusched.cli.select import filter_options, filters_of
from gpusched.cli.settings import say, settings
from gpusched.client import Client

_SHORT = 15  # rows of the short form


@click.command()
@filter_options
@click.option("-a", "--all", "ended", is_flag=True, help="Ended jobs too.")
@click.option("-r", "--array", "each", is_flag=True, help="One row for each waiting array element.")
@list_options
def queue(ended: bool, each: bool, **options: Any) -> None:
    """Show what runs and what waits.

    Running jobs come first, then those that wait for devices in the order in which they will start, then those that
    wait for their time or for other jobs, then the held ones. Times are running time / time
    limit. START is when a waiting job is expected to start. In brackets is why a job waits; `gpusched why JOB` says it
    at length.
    """
    if options["help_format"]:
        print_field_help(JOB_FIELDS)
        return
    style = style_of(options, JOB_FIELDS)
    with connect() as client:
        filters = filters_of(client, options)

        def show() -> None:
            usual = not (settings.json or style.csv or style.fields or style.sort)
            plain = usual and not each
            jobs = client.jobs(**filters.asked(), ended=ended, fields=QUEUE_KEYS if usual else ())
            rows = each_element(jobs) if each else fold_arrays(jobs) if plain else jobs
            print_list(rows, queue_columns(rows), JOB_FIELDS, style, "jobs")
            if plain and not style.noheader:
                say(summary(client))

        repeat(show, style.watch)


def summary(client: Client) -> str:
    """`3 running, 5 waiting, 2 GPUs free`, and a sentence if something is wrong with the daemon."""
    status = client.status()
    counts, devices = status["jobs"], status["devices"]
    free = devices["free"]
    text = f"{counts['running']} running, {counts['pending']} waiting, {free} GPU{'' if free == 1 else 's'} free"
    for trouble in (status.get("degraded"), devices.get("error")):
        if trouble:
            text += f"\ngpusched: {trouble}"
    return text


def short_queue() -> None:
    """The first rows of the queue and the summary."""
    with connect() as client:
        jobs = client.jobs(fields=() if settings.json else QUEUE_KEYS)
        rows = jobs if settings.json else fold_arrays(jobs)[:_SHORT]
        print_list(rows, queue_columns(rows), JOB_FIELDS, Style(), "jobs")
        if settings.json:
            return
        hidden = count_of(jobs) - count_of(rows)
        if hidden > 0:
            say(f"… and {hidden} more: gpusched queue")
        say(summary(client))
        if not jobs:
            say("submit a job with: gpusched submit -g 1 -- python train.py   (all commands: gpusched --help)")
