"""What `gpusched simulate` is to run: the jobs of a trace or of this machine's past, and the rules they are under."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpusched.cli.settings import say
from gpusched.cli.simulate_table import count
from gpusched.model.errors import UsageError
from gpusched.model.policy import Placement, PolicyName
from gpusched.model.rules import Rules

if TYPE_CHECKING:
    from gpusched.model.policy import PreemptCost
    from gpusched.simulator.history import Past
    from gpusched.simulator.workload import Fleet, Workload

Options = dict[str, Any]  # of the command, by name


def chosen(trace: str | None, options: Options) -> tuple[Workload, Fleet, Past | None]:
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
    if options["shared"] and all(job.gpu_mem_mib is None for job in workload.jobs):
        say(f"--shared changes nothing: no job of {workload.source} has a gpu_milli below 1000")
    return check_fits(workload, options["fleet"]), options["fleet"], None


def _history(options: Options) -> tuple[Past, Fleet]:
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


def rules_of(names: tuple[PolicyName, ...], options: Options) -> tuple[list[Rules], PreemptCost]:
    """The rules of each policy, and what being moved really costs. Raises UsageError.

    The daemon's rules (as a configuration has them, if one is named) or the published ones, with the settings that
    were given instead. The published policies do not know what being moved costs.
    """
    from gpusched.simulator.settings import FREE, daemon_rules, published_rules

    asked = ("placement", "tick", "las_limits", "running_first", "migrate")
    changes = {setting: options[setting] for setting in asked if options[setting] is not None}
    if options["placement"]:
        changes["placement"] = Placement(options["placement"])
    if options["semantics"] == "published":
        if options["config"]:
            raise UsageError("--config has settings of the daemon's own semantics", "leave --semantics published away")
        return [published_rules(name, **changes) for name in names], options["cost"] or FREE
    configured = _configured(options["config"])
    cost = options["cost"] or (configured or Rules.default()).policy.cost
    if configured is not None:
        changes.setdefault("placement", configured.policy.placement)
    return [daemon_rules(name, configured, cost=cost, **changes) for name in names], cost


_PREEMPTIVE = tuple(name for name in PolicyName if name.preemptive)
_READERS = {  # of options that not every policy reads
    "las_limits": (PolicyName.LAS,), "running_first": (PolicyName.LAS,), "tick": _PREEMPTIVE, "migrate": _PREEMPTIVE,
    "cost": _PREEMPTIVE,
}  # fmt: skip


def without_effect(names: tuple[PolicyName, ...], options: Options) -> list[str]:
    """A sentence about each option that was given and that none of these policies reads."""
    notes = []
    for option, readers in _READERS.items():
        if options[option] is None or set(readers) & set(names):
            continue
        if option == "cost" and options["config"]:
            continue  # with quotas jobs may have to leave under any policy
        nothing = f"{_flag(option, options)} changes nothing under {', '.join(names)}"
        notes.append(f"{nothing}: it is for {', '.join(readers)}")
    if options["migrate"] and options["placement"] not in (None, str(Placement.PACK)):
        notes.append(f"--migrate changes nothing with --placement {options['placement']}: it is for pack")
    return notes


def _flag(option: str, options: Options) -> str:
    """How it was written."""
    if option == "cost":
        return "--preempt-cost"
    return ("--no-" if options[option] is False else "--") + option.replace("_", "-")


def _configured(path: str | None) -> Rules | None:
    from gpusched.daemon.config import load_config

    return load_config(path, must_exist=True).rules if path else None
