"""`gpusched gpus`: the devices and who has them, as gpustat shows them; `--query` speaks nvidia-smi."""

from __future__ import annotations

import sys
from typing import Any

import click

from gpusched.cli import text
from gpusched.cli.connect import connect
from gpusched.cli.gpu_query import parse_query, print_query
from gpusched.cli.output import Field, Json, list_options, print_field_help, print_list, repeat, style_of
from gpusched.cli.settings import paint, say, settings
from gpusched.model.errors import UsageError

_STATE_COLORS = {
    "free": "green", "reserved": "blue", "busy": "yellow", "shared": "cyan", "leaving": "magenta", "foreign": "red",
}  # fmt: skip


def _who(device: Json) -> str:
    return ",".join(f"{text.escape(job['user'])}#{job['job']}" for job in device.get("jobs") or ()) or "-"


def _first(key: str) -> Field:
    """A fact about the jobs on a device, `;` between several."""
    return Field(value=lambda device: ";".join(str(job[key]) for job in device.get("jobs") or ()) or None)


GPU_FIELDS: dict[str, Field] = {
    **{
        name: Field()
        for name in ("uuid", "name", "pci_bus_id", "group", "health", "fault", "state", "foreign", "samples")
    },
    **{
        name: Field(right=True)
        for name in ("index", "memory_total", "memory_used", "utilization", "temperature", "power", "power_limit",
                     "foreign_mib")
    },
    "jobs": Field(text=_who),
    "reservations": Field(text=lambda device: ",".join(r["name"] for r in device.get("reservations") or ()) or "-"),
    "job": _first("job"),
    "user": _first("user"),
    "job_name": _first("name"),
}  # fmt: skip
GPU_COLUMNS = ("index", "name", "state", "utilization", "memory_used", "memory_total", "temperature", "power", "jobs")


@click.command()
@click.option("--query", "--query-gpu", "query", metavar="FIELDS",
              help="nvidia-smi's fields, and job.id, job.user, job.name, sched.state, sched.foreign_mib.")
@list_options
@click.option("-l", "--loop", type=click.FloatRange(min=0.1), metavar="SEC", help="Show it again every SEC seconds.")
def gpus(query: str | None, loop: float | None, **options: Any) -> None:
    """Show the GPUs and who has them.

    With --query it speaks nvidia-smi: --query index,memory.used,job.user --format csv[,noheader][,nounits] or json.
    """  # fmt: skip
    if options["help_format"]:
        print_field_help(GPU_FIELDS)
        return
    every = loop or options["watch"]
    form = options.pop("fields")
    asked = parse_query(query, form) if query else None
    if asked is None and form and form.split(",")[0].strip() in ("csv", "json"):
        raise UsageError(f"--format {form} goes with --query", "without --query use --csv or --json")
    style = style_of({**options, "fields": None if asked else form}, GPU_FIELDS)
    with connect() as client:

        def show() -> None:
            answer = client.devices()
            if asked is not None:
                print_query(answer, asked)
            elif settings.json:
                print_list(answer["devices"], (), GPU_FIELDS, style, "devices")
            elif style.csv or style.fields or style.sort:
                print_list(answer["devices"], GPU_COLUMNS, GPU_FIELDS, style, "devices")
            else:
                _print_devices(answer)
            sys.stdout.flush()
            _say_trouble(answer)

        repeat(show, every)


def _say_trouble(answer: Json) -> None:
    if answer.get("error"):
        say(f"gpusched: {answer['error']}")
    elif not answer["devices"]:
        say("gpusched: no GPU found; see: gpusched doctor   (or simulate some: gpusched demo)")


def _print_devices(answer: Json) -> None:
    devices = answer["devices"]
    width = max((len(text.escape(device["name"])) for device in devices), default=0)
    groups = {text.escape(device.get("group") or "") for device in devices}
    widest = max(map(len, groups)) if len(groups) > 1 else 0
    for device in devices:
        print("\n".join(_lines(device, width, widest)))


def _lines(device: Json, width: int, group_width: int = 0) -> list[str]:
    """`[0] NVIDIA H200  52°C 100%  32362/143771 MiB  busy  alice #42 train-x 1:02:03`; groups, if there are several."""
    heat = f"{device['temperature']:>3}°C" if device.get("temperature") is not None else "  ?°C"
    load = f"{device['utilization']:>3}%" if device.get("utilization") is not None else "  ?%"
    used, total = device.get("memory_used"), device.get("memory_total")
    memory = f"{'?' if used is None else used:>6}/{'?' if total is None else total:<6} MiB"
    state = str(device["state"])
    shown = paint(f"{state:<8}", _STATE_COLORS.get(state, "red"))
    holders = [_holder(job) for job in device.get("jobs") or ()]
    if device.get("foreign_mib"):
        users = sorted({str(process.get("user") or "?") for process in device.get("foreign") or ()})
        holders.append(f"{device['foreign_mib']} MiB in use by {text.escape(', '.join(users) or 'others')} (foreign)")
    if device.get("fault"):
        holders.append(text.escape(device["fault"]))
    for reservation in (device.get("reservations") or ())[:1]:
        whom, name = text.escape(reservation["for"]), text.escape(reservation["name"])
        holders.append(f"reserved for {whom}: {reservation['when']} ({name})")
    name = f"{text.escape(device['name']):<{width}}"
    if group_width:
        name += f" {text.escape(device.get('group') or ''):<{group_width}}"
    head = f"[{device['index']}] {name} {heat} {load} {memory} {shown}"
    first, *others = holders or [""]
    # A shared device has several holders: the others stand below the first.
    bare = len(head) - len(shown) + 8
    return [f"{head}  {first}".rstrip(), *(" " * (bare + 2) + line for line in others)]


def _holder(job: Json) -> str:
    import time

    parts = [text.escape(job["user"]), f"#{job['job']}", text.escape(job["name"])]
    if job.get("mem_mib") is not None:
        used = f"{job['used_mib']}/" if job.get("used_mib") is not None else ""
        parts.append(f"{used}{job['mem_mib']} MiB")
    if job.get("started_at"):
        parts.append(text.duration(max(0.0, time.time() - job["started_at"])))
    if job.get("leaving_for"):
        parts.append(f"(leaving for {job['leaving_for']})")
    return " ".join(parts)
