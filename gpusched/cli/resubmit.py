"""`gpusched resubmit JOB…`: the same again, as a new job with a new id."""

from __future__ import annotations

import click

from gpusched.cli.connect import connect, resolve
from gpusched.cli.control import report_results
from gpusched.cli.select import job_argument
from gpusched.cli.settings import settings


@click.command()
@job_argument()
@click.option("-H", "--hold", is_flag=True, help="Do not start the new jobs before `gpusched release`.")
@click.option("--parsable", is_flag=True, help="Print just the new jobs' ids.")
def resubmit(words: tuple[str, ...], hold: bool, parsable: bool) -> None:
    """Submit jobs again, with new ids.

    Command, options and environment are as they were; begin time and dependency are left out, and the new job starts
    without the old one's checkpoints. To let the same job go on where it stopped use `gpusched requeue`.
    """
    with connect(names_jobs=True) as client:
        results = client.resubmit(resolve(client, words), hold)
    if parsable and not settings.json:
        for result in results:
            if result["ok"]:
                print(result["new"])
        results = [result for result in results if not result["ok"]]
    click.get_current_context().exit(report_results(results))
