"""`gpusched why JOB`: why a job waits and what would have to happen, in words."""

from __future__ import annotations

import click

from gpusched.cli import estimate
from gpusched.cli.connect import connect, one_job
from gpusched.cli.output import Json, print_json
from gpusched.cli.select import job_argument
from gpusched.cli.settings import paint, settings
from gpusched.cli.text import escape


@click.command()
@job_argument(many=False)
def why(word: str) -> None:
    """Say why a job waits.

    What it needs, when it is expected to start, who is ahead of it and why, and what each device is doing.
    """
    with connect(names_jobs=True) as client:
        answer = client.why(one_job(client, word))
    if settings.json:
        print_json(answer)
    else:
        print("\n".join(_lines(answer)))


def _lines(answer: Json) -> list[str]:
    reason = f" ({answer['reason']})" if answer.get("reason") else ""
    lines = [f"job {answer['job']} is {paint(str(answer['state']), 'bold')}{escape(reason)}"]
    if answer.get("text"):
        lines.append(f"  {escape(answer['text'])}")
    if answer.get("next"):
        lines.append(f"  next: {escape(answer['next'])}")
    if starts := estimate.sentence(answer.get("estimated_start")):
        lines.append(f"  estimated start: {escape(starts)}")
    ahead = answer.get("ahead") or []
    if ahead:
        lines.append(f"ahead of it ({len(ahead)}):")
        lines += [f"  {_who(row)}  {escape(row['text'])}" for row in ahead]
    if devices := answer.get("devices"):
        lines.append("devices:")
        for device in devices:
            mark = paint("could be used", "green") if device["usable"] else "no"
            lines.append(f"  [{device['index']}]  {mark}: {escape(device['text'])}")
    if victims := answer.get("victims"):
        lines.append("running jobs that hold what it needs:")
        for row in victims:
            may = "may be preempted" if row["preemptible"] else "may not be preempted"
            lines.append(f"  {_who(row)}  {may}: {escape(row['text'])}")
    return lines


def _who(row: Json) -> str:
    return f"{row['job']}  {escape(row['user'])}  {escape(row['qos'])}"
