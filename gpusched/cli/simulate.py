"""`gpusched simulate`: what a policy would have done with a trace, or with this machine's own past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpusched.cli.options import Grammar
from gpusched.cli.settings import say
from gpusched.cli.simulate_table import ProgressLine, Shown, count, show
from gpusched.model.errors import UsageError
from gpusched.model.policy import Placement
from gpusched.model.units import parse_seconds

if TYPE_CHECKING:
    from gpusched.model.rules import Rules
    from gpusched.simulator.compare import Setting
    from gpusched.simulator.history import Past
    from gpusched.simulator.workload import Fleet, Outcome, Workload


def _lazily(name: str) -> Callable[[str], Any]:
    """A grammar of gpusched.simulator.choices, imported when a value is read."""

    def parse(text: str) -> Any:
        from gpusched.simulator import choices

        return getattr(choices, name)(text)

    return parse


_SECONDS = Grammar("time", parse_seconds)


@click.command(
    epilog="\b\nExamples (the trace is in the repository):\n"
    "  gpusched simulate tests/data/philly.csv --devices 2x8 --policy fifo,backfill,las,srtf\n"
    "  gpusched simulate tests/data/philly.csv --devices 2x8 --policy all --plot policies.png\n"
    "  gpusched simulate --from-history --since 30d --policy backfill,las\n"
    "\b\nExit codes: 0 done; 1 the trace, the policy or the history is no good, or jobs did not finish; 2 bad options.",
)
@click.argument("trace", required=False, type=click.Path(), metavar="[TRACE]")
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
@click.option("--users-from", type=click.Choice(["user", "vc"]), help="The column that says whose a job is.")
@click.option("--shared", is_flag=True, help="Jobs with gpu_milli below 1000 get that share of a device's memory.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="N", help="Only the first N lines of the trace.")
@click.option("--all-at-zero", is_flag=True, help="All jobs are submitted at once.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
              help="So many policies at the same time.")
@click.option("--csv", is_flag=True, help="Comma-separated values, as --json has them.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Also a picture: .png, .svg or .pdf.")
def simulate(trace: str | None, policy: str, csv: bool, plot: str | None, processes: int, **options: Any) -> None:
    """Find out what a policy would do with your jobs.

    The daemon's own engine, in virtual time, on a trace of jobs (csv or csv.gz, first columns job_id, user, vc,
    submit_s, gpus, duration_s, status) or on the jobs that have ended on this machine. A table tells of each policy
    how long jobs took and waited, how well devices were used, what preemptions cost, and how fair it was.
    """
    from gpusched.simulator.choices import parse_cost, parse_policies

    if options["cost"] is None:
        options["cost"] = parse_cost("60s" if options["semantics"] == "daemon" else "0s")
    names = parse_policies(policy)
    if plot is not None:
        from gpusched.simulator.plot import check_can_draw

        check_can_draw(plot)
    workload, fleet, past = _jobs(trace, options)
    if past is not None and "predicted" in names:
        from gpusched.simulator.history import check_can_learn

        check_can_learn(workload)
    rules = [_rules(name, options) for name in names]
    outcomes = _run(_setting(workload, fleet, options, timeline=plot is not None), rules, processes)
    if past is not None:
        outcomes.insert(0, past.real)
    show(Shown(workload.source, fleet, outcomes, _asked(options)), csv)
    if plot is not None:
        from gpusched.simulator.plot import draw

        draw(plot, workload.source, outcomes)
        say(f"the picture is in {plot}")


def _jobs(trace: str | None, options: dict[str, Any]) -> tuple[Workload, Fleet, Past | None]:
    """The workload, the devices and, of a history, how it really went. Raises UsageError, SimulationError."""
    from gpusched.simulator.traces import check_fits, read_trace

    if options["from_history"]:
        given = [name for name in ("users_from", "max_jobs", "all_at_zero", "shared") if options[name]]
        if trace or given:
            what = "a trace" if trace else "--" + given[0].replace("_", "-")
            raise UsageError(f"--from-history and {what} do not go together", "leave one of them away")
        past, fleet = _history(options)
        return check_fits(past.workload, fleet), fleet, past
    if options["since"]:
        raise UsageError("--since is for --from-history", "a trace is shortened with --max-jobs")
    if not trace:
        raise UsageError("no trace to simulate", "name a csv or csv.gz file, or take the machine's own: --from-history")
    if options["fleet"] is None:
        raise UsageError("how many devices?", "write for example --devices 8x8 (8 nodes of 8) or --devices 16")
    workload = read_trace(
        trace,
        options["users_from"],
        max_jobs=options["max_jobs"],
        all_at_zero=options["all_at_zero"],
        shared=options["shared"],
        memory_mib=options["fleet"].memory_mib,
    )
    return check_fits(workload, options["fleet"]), options["fleet"], None


def _history(options: dict[str, Any]) -> tuple[Past, Fleet]:
    """What the daemon tells of its past; a daemon that does not run is not started for that. Raises Unavailable."""
    from gpusched.cli.connect import connect
    from gpusched.cli.history import parse_past
    from gpusched.cli.submission import local_now
    from gpusched.simulator.history import past_of
    from gpusched.simulator.workload import Fleet

    since = parse_past(options["since"] or "30d", local_now())
    with connect(start=False) as client:
        jobs = client.history(since=since, limit=100_000)
        devices = client.devices()["devices"]
    fleet = options["fleet"]
    if fleet is None:
        if not devices:
            raise UsageError("this machine has no devices now", "say how many it had: --devices 8")
        fleet = Fleet(1, len(devices), min(device["memory_total"] for device in devices))
    past = past_of(jobs, fleet, f"the jobs that ended in the last {options['since'] or '30d'}")
    if past.without_devices:
        say(f"{count(past.without_devices, 'job')} without a GPU left out")
    if past.never_ran:
        say(f"{count(past.never_ran, 'job')} that never ran left out")
    return past, fleet


def _rules(name: Any, options: dict[str, Any]) -> Rules:
    """The daemon's rules or the published ones, with the settings that were given instead. Raises UsageError."""
    from gpusched.simulator.settings import daemon_rules, published_rules

    asked = ("placement", "tick", "las_limits", "running_first", "migrate")
    changes = {setting: options[setting] for setting in asked if options[setting] is not None}
    if options["placement"]:
        changes["placement"] = Placement(options["placement"])
    if options["semantics"] == "published":
        return published_rules(name, **changes)
    return daemon_rules(name, cost=options["cost"], **changes)


def _setting(workload: Workload, fleet: Fleet, options: dict[str, Any], timeline: bool) -> Setting:
    from gpusched.simulator.compare import Setting

    return Setting(workload, fleet, options["durations"], options["cost"], timeline)


def _run(setting: Setting, rules: Sequence[Rules], processes: int) -> list[Outcome]:
    """All policies; each is checked as soon as it is done, so that nobody waits for the rest of a broken run."""
    from gpusched.simulator.compare import compare
    from gpusched.simulator.report import check_finished

    outcomes = []
    with ProgressLine(len(rules)) as line:
        for outcome in compare(setting, rules, line.tell, processes):
            check_finished(outcome)
            line.done()
            outcomes.append(outcome)
    return outcomes


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were asked for, for --json."""
    from dataclasses import asdict

    kept = ("semantics", "durations", "placement", "tick", "las_limits", "running_first", "migrate", "users_from",
            "shared", "max_jobs", "all_at_zero")  # fmt: skip
    return {name: options[name] for name in kept} | {"preempt_cost": asdict(options["cost"])}
