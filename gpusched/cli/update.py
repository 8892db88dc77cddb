"""`gpusched update JOB… --time 4:00:00`: change what a job asks for."""

from __future__ import annotations

from typing import Any

import click

from gpusched.cli.connect import connect, resolve
from gpusched.cli.control import report_results
from gpusched.cli.options import Grammar, gpu_glob, parse_gpus, parse_limit
from gpusched.cli.select import job_argument
from gpusched.cli.submission import begin_time, dependency
from gpusched.client import Client
from gpusched.model.errors import UsageError
from gpusched.model.policy import MOST_NICE
from gpusched.model.units import parse_size


def _size(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


@click.command()
@job_argument()
@click.option("-J", "--name", help="Name of the job.")
@click.option("-q", "--qos", help="Level of service.")
@click.option("-t", "--time", "time_limit", type=Grammar("time", parse_limit), help="Time limit; 0 removes it.")
@click.option("--expect", "expected", type=Grammar("time", parse_limit), help="How long it will run; 0 removes it.")
@click.option("--nice", type=click.IntRange(-MOST_NICE, MOST_NICE), metavar="N", help="Lowers its priority.")
@click.option("-b", "--begin", metavar="TIME", help="Not before; `now` removes it.")
@click.option("-g", "--gpus", type=Grammar("n", parse_gpus), metavar="[TYPE:]N", help="GPUs; 2-8: elastic.")
@click.option("--gpu-mem", type=Grammar("size", _size), metavar="SIZE", help="Memory of each GPU; 0 removes it.")
@click.option("--gpu-type", metavar="GLOB", help="Only GPUs with such a name; an empty text removes it.")
@click.option("-p", "--partition", help="Set of devices to run on.")
@click.option("--reservation", metavar="NAME", help="Only on devices of this reservation; an empty text removes it.")
@click.option("-d", "--dependency", "depends", metavar="LIST", help="Dependency; an empty text removes it.")
@click.option("--requeue/--no-requeue", default=None, help="Whether it may run again.")
@click.option("--comment", help="A note.")
def update(words: tuple[str, ...], **options: Any) -> None:
    """Change what jobs ask for.

    Everything while they wait; name, QoS, time limit and comment also while they run.
    """
    with connect(names_jobs=True) as client:
        changes = _changes(client, options)
        if not changes:
            raise UsageError("nothing to change", "write for example: gpusched update 42 --time 4:00:00 --qos high")
        results = client.update(resolve(client, words), changes)
    click.get_current_context().exit(report_results(results))


def _changes(client: Client, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of docs/api.md that were given."""
    same = ("name", "qos", "expected", "nice", "time_limit", "partition", "reservation", "requeue", "comment")
    changes = {name: options[name] for name in same if options[name] is not None}
    if options["gpus"] is not None:
        count, kind = options["gpus"]
        changes |= {"gpus": count.least, "gpus_max": count.most or 0, "gpu_counts": list(count.only)}
        if kind:
            changes["gpu_type"] = kind
    if options["gpu_mem"] is not None:
        changes["gpu_mem_mib"] = options["gpu_mem"]
    if options["gpu_type"] is not None:
        changes["gpu_type"] = gpu_glob(options["gpu_type"]) if options["gpu_type"] else ""
    if options["begin"] is not None:
        changes["begin"] = 0.0 if options["begin"].strip().lower() == "now" else begin_time(options["begin"])
    if options["depends"] is not None:
        changes["dependency"] = dependency(client, (), options["depends"]) or ""
    return changes
