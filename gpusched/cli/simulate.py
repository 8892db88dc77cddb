"""`gpusched simulate`: what a policy would have done with a trace, or with this machine's own past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpusched.cli.options import Grammar
from gpusched.cli.output import check_one_form
from gpusched.cli.settings import say
from gpusched.cli.simulate_jobs import chosen, rules_of, without_effect
from gpusched.cli.simulate_table import ProgressLine, Shown, show
from gpusched.model.policy import Placement, PreemptCost
from gpusched.model.units import parse_seconds

if TYPE_CHECKING:
    from gpusched.model.rules import Rules
    from gpusched.simulator.compare import Setting
    from gpusched.simulator.workload import Outcome


def _lazily(name: str) -> Callable[[str], Any]:
    """A grammar of gpusched.simulator.choices, imported when a value is read."""

    def parse(text: str) -> Any:
        from gpusched.simulator import choices

        return getattr(choices, name)(text)

    return parse


_SECONDS = Grammar("time", parse_seconds)
_FILE = click.Path(readable=False)  # what is wrong with it is found by reading it, and told with what to do


@click.command(
    epilog="\b\nExamples (the trace is in the repository):\n"
    "  gpusched simulate tests/data/philly.csv --devices 2x8 --policy fifo,backfill,las,srtf\n"
    "  gpusched simulate tests/data/philly.csv --devices 2x8 --policy all --plot policies.png\n"
    "  gpusched simulate --from-history --since 30d --policy backfill,las\n"
    "\b\nExit codes: 0 done; 1 the trace, the policy or the history is no good, or jobs did not finish; 2 bad options.",
)
@click.argument("trace", required=False, type=_FILE, metavar="[TRACE]")
@click.option("--policy", default="backfill", show_default=True, metavar="NAME[,NAME...]",
              help="fifo, backfill, fit-first, sjf, srtf, srsf, las, predicted; all.")
@click.option("--devices", "fleet", type=Grammar("devices", _lazily("parse_fleet")), metavar="NODESxN",
              help="8x8: 8 nodes of 8 devices; 16: one node of 16.")
@click.option("--from-history", is_flag=True, help="This machine's own ended jobs instead of a trace.")
@click.option("--since", metavar="TIME", help="With --from-history: ended after this (default 30d ago).")
@click.option("--placement", type=click.Choice([str(place) for place in Placement]), help="Gangs of up to a node's "
              "size on one node: if there is room, only there, or no matter where (default: pack).")
@click.option("--preempt-cost", "cost", type=Grammar("cost", _lazily("parse_cost")), metavar="TIME|NAME",
              help="What being moved costs a job: 30s; lucid and helios: by its size (default 60s, published: 0s).")
@click.option("--tick", type=_SECONDS, metavar="TIME", help="Preemptions are decided at multiples of this; 0: always.")
@click.option("--las-limits", type=Grammar("limits", _lazily("parse_limits")), metavar="LIST",
              help="Device-seconds at which a job changes its queue: 3600,28800 or 1h,8h.")
@click.option("--running-first/--no-running-first", default=None,
              help="Inside a queue of las, running jobs stay (the daemon's way), or the order of submission holds.")
@click.option("--migrate", is_flag=True, default=None, help="Running jobs may be moved to make room for a gang.")
@click.option("--durations", type=click.Choice(["given", "unknown"]), default="given", show_default=True,
              help="Whether the policy is told how long jobs run.")
@click.option("--semantics", type=click.Choice(["daemon", "published"]), default="daemon", show_default=True,
              help="The daemon's own calm rules, or those of published simulators: decide by count, no patience.")
@click.option("--config", type=_FILE, metavar="FILE",
              help="Take the daemon's rules as this configuration has them: weights, shares, limits.")
@click.option("--users-from", type=click.Choice(["user", "vc"]), help="The column that says whose a job is.")
@click.option("--shared", is_flag=True, help="Jobs with gpu_milli below 1000 get that share of a device's memory.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="N", help="Only the first N lines of the trace.")
@click.option("--all-at-zero", is_flag=True, help="All jobs are submitted at once.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
              help="So many policies at the same time.")
@click.option("--csv", is_flag=True, help="Comma-separated values, as --json has them.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Also a picture: .png, .svg or .pdf.")
def simulate(trace: str | None, policy: str, csv: bool, plot: str | None, processes: int, **options: Any) -> None:
    """Find out what a policy would do with your jobs.

    The daemon's own engine, in virtual time, on a trace of jobs (csv or csv.gz, first columns job_id, user, vc,
    submit_s, gpus, duration_s, status) or on the jobs that have ended on this machine. A table tells of each policy
    how long jobs took and waited, how well devices were used, what preemptions cost, and how fair it was.
    """
    from gpusched.simulator.choices import parse_policies
    from gpusched.simulator.compare import Setting

    check_one_form(csv)
    names = parse_policies(policy)
    for note in without_effect(names, options):
        say(note)
    if plot is not None:
        from gpusched.simulator.plot import check_can_draw

        check_can_draw(plot)
    rules, cost = rules_of(names, options)
    workload, fleet, past = chosen(trace, options)
    if past is not None and "predicted" in names:
        from gpusched.simulator.history import check_can_learn

        check_can_learn(workload)
    outcomes = _run(Setting(workload, fleet, options["durations"], cost, plot is not None), rules, processes)
    if past is not None:
        outcomes.insert(0, past.real)
    show(Shown(workload.source, fleet, outcomes, _asked(options, cost)), csv)
    if plot is not None:
        from gpusched.simulator.plot import draw

        draw(plot, workload.source, outcomes)
        say(f"the picture is in {plot}")


def _run(setting: Setting, rules: Sequence[Rules], processes: int) -> list[Outcome]:
    """All policies; each is checked as soon as it is done, so that nobody waits for the rest of a broken run."""
    from gpusched.simulator.compare import compare
    from gpusched.simulator.report import check_finished

    outcomes = []
    with ProgressLine(len(rules)) as line:
        for outcome in compare(setting, rules, line.tell, processes):
            check_finished(outcome)
            line.done(outcome.policy)
            outcomes.append(outcome)
    return outcomes


def _asked(options: dict[str, Any], cost: PreemptCost) -> dict[str, Any]:
    """The settings that were asked for, for --json."""
    from dataclasses import asdict

    kept = ("semantics", "durations", "placement", "tick", "las_limits", "running_first", "migrate", "users_from",
            "shared", "max_jobs", "all_at_zero", "config")  # fmt: skip
    return {name: options[name] for name in kept} | {"preempt_cost": asdict(cost)}
