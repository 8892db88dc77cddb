"""The options of a submit: one table for the command line, for `run` and for #GPUSCHED lines, so that they agree.

Short letters have Slurm's meaning; -g and -f, which sbatch leaves free, are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gpusched.model.array import parse_array
from gpusched.model.errors import UsageError
from gpusched.model.gpu_count import COUNT, GpuCount, parse_count
from gpusched.model.policy import MOST_NICE
from gpusched.model.signals import parse_signal
from gpusched.model.units import parse_duration, parse_seconds, parse_size


class Grammar(click.ParamType[Any]):
    """A value with a grammar of gpusched/model. Its errors pass through as they are: they carry their own hints."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.parse(value) if isinstance(value, str) else value


class ShortOption(click.Option):
    """An option with aliases that work but are left out of the help."""

    def __init__(self, *args: Any, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__([*args, *aliases], **kwargs)
        self.aliases = aliases

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        shown = self.opts
        self.opts = [name for name in shown if name not in self.aliases]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = shown


def main_name(option: click.Option) -> str:
    """The long name under which the help shows an option, not an alias of it."""
    aliases = getattr(option, "aliases", ())
    return max((name for name in option.opts if name not in aliases), key=len)


def parse_gpus(text: str) -> tuple[GpuCount, str | None]:
    """How many devices, and of which type (a glob): `2`, `2-8`, `h100:2`; as in --gres `gpu:2`, `gpu:h100:2`, `gpu`."""
    words = text.strip().split(":")
    if words[0].lower() == "gpu":
        words = words[1:] or ["1"]
    # the number is the last word, or the last two (2-8:2)
    place = next((i for i in range(len(words)) if COUNT.fullmatch(":".join(words[i:]))), 0)
    kind = ":".join(words[:place])
    return parse_count(":".join(words[place:])), gpu_glob(kind) if kind else None


def gpu_glob(kind: str) -> str:
    """A type as a glob on the device's name: `h100` means any name with h100 in it."""
    return kind if any(char in kind for char in "*?[") else f"*{kind}*"


def parse_limit(text: str) -> float:
    """A time limit in seconds; 0: none."""
    return parse_duration(text) or 0.0


def parse_env(text: str) -> tuple[str, str | None]:
    """`K=V`, or `K` to take it from here (the value is then None)."""
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"--env {text!r} names no variable", "write: --env NAME=VALUE")
    return name, value if equals else None


def _array(text: str) -> str:
    return parse_array(text).text


def _cron(text: str) -> str:
    """Five fields. Raises UsageError with cronsim's reason."""
    from cronsim import CronSim, CronSimError

    try:
        CronSim(text, _some_day())
    except CronSimError as error:
        raise UsageError(
            f"cron expression {text!r} cannot be read: {str(error).lower()}",
            'minute hour day month weekday, for example: --cron "0 9 * * mon"',
        ) from None
    return text


def _some_day() -> Any:
    from datetime import datetime

    return datetime(2026, 1, 1)


def _text(name: str, most: int = 4096) -> Grammar:
    def parse(text: str) -> str:
        if not text.strip():
            raise UsageError(f"{name} is empty", "leave the option away, or give it a value")
        if len(text) > most:
            raise UsageError(f"{name} is longer than {most} characters", "choose a shorter one")
        return text

    return Grammar(name, parse)


_SIZE, _SECONDS = Grammar("size", parse_size), Grammar("seconds", parse_seconds)
_COUNT = click.IntRange(min=0)


def submit_params() -> list[click.Option]:
    """A fresh list of the options that describe a job."""
    option = ShortOption
    return [
        option("-J", "--name", aliases=("--job-name",), type=_text("name", 128), help="Name of the job."),
        option("-g", "--gpus", aliases=("-G", "--gres"), type=Grammar("n", parse_gpus), metavar="[TYPE:]N",
               help="GPUs (default 1; 0: none). An elastic job's: 2-8, or 1,2,4,8."),
        option("--gpu-mem", type=_SIZE, metavar="SIZE",
               help="Memory that each GPU must have (20G); with --shared, the job's share of it."),
        option("--shared", is_flag=True, help="Share the GPU with other sharing jobs (needs --gpu-mem)."),
        option("--gpu-type", type=_text("GPU type", 128), metavar="GLOB", help="Only GPUs with such a name."),
        option("-q", "--qos", type=_text("QoS", 128), help="Level of service, such as low, normal or high."),
        option("-p", "--partition", type=_text("partition", 128), help="Set of devices to run on."),
        option("--reservation", type=_text("reservation", 128), metavar="NAME",
               help="Only on the devices of this reservation, while it is active (gpusched admin reservations)."),
        option("-A", "--account", type=_text("account", 128), help="Account or project."),
        option("-t", "--time", "time_limit", type=Grammar("time", parse_limit), metavar="TIME",
               help="Time limit of each attempt: 90 (minutes), 2:00:00, 1-12:00:00, 45m, 1d12h; 0: none."),
        option("--expect", "expect", type=Grammar("time", parse_limit), metavar="TIME",
               help="How long it will run in all, for planning; never enforced. Written as --time."),
        option("--nice", type=click.IntRange(-MOST_NICE, MOST_NICE), metavar="N",
               help="Let others go first: lowers the priority (10000 to -10000; below 0 only administrators)."),
        option("-b", "--begin", metavar="TIME", help="Not before: 22:00, now+2h, tomorrow, 2026-12-24T18:00."),
        option("--cron", type=Grammar("cron", _cron), metavar="FIELDS", help='Again and again: "0 9 * * mon".'),
        option("--after", multiple=True, metavar="JOBS", help="After these jobs have succeeded (1,2 or @)."),
        option("-d", "--dependency", metavar="LIST", help="Slurm's grammar: afterok:1:2,afterany:3; ? means any."),
        option("--keep-on-dep-fail", aliases=("--no-kill-on-invalid-dep",), is_flag=True,
               help="Keep waiting when a dependency can never be met (else the job is cancelled)."),
        option("-a", "--array", type=Grammar("array", _array), metavar="INDEXES",
               help="One job for each index: 0-31, 0-31%4 (four at once), 1,3,7."),
        option("--env", multiple=True, type=Grammar("env", parse_env), metavar="K[=V]",
               help="Set a variable for the job (repeatable)."),
        option("--export", metavar="ALL|NONE|LIST", help="Which variables of here the job gets (default ALL)."),
        option("-D", "--chdir", aliases=("--workdir",), type=click.Path(), metavar="DIR",
               help="Run in this directory."),
        option("-o", "--output", type=_text("output"), metavar="FILE",
               help="Output file; %j job, %A_%a array and index, %x name, %u user, %r restart."),
        option("-e", "--error", type=_text("error"), metavar="FILE", help="Errors into a file of their own."),
        option("--requeue/--no-requeue", default=True, help="Whether it may run again after a preemption or a failure "
               "of the machine (default: yes)."),
        option("--max-requeues", type=_COUNT, metavar="N", help="At most so many new attempts after losses."),
        option("--grace", type=_SECONDS, metavar="TIME", help="Time to save when asked to stop: 60s, 2m."),
        option("--signal", type=Grammar("signal", parse_signal), metavar="SIG[@SEC]",
               help="Signal that asks the job to save (default TERM); @90: also 90 s before its time limit."),
        option("--checkpoint-dir", type=click.Path(), metavar="DIR",
               help="Where the job keeps its checkpoints; %j and so on as in --output."),
        option("-H", "--hold", is_flag=True, help="Do not start it before `gpusched release`."),
        option("--comment", type=Grammar("text", str), help="A note that show displays."),
    ]  # fmt: skip


def how_params() -> list[click.Option]:
    """Options of `submit` itself: what it prints and whether it waits. They may stand in a script, too."""
    option = ShortOption
    return [
        option("-W", "--wait", is_flag=True, help="Wait for the end; exit with the job's code."),
        option("-f", "--follow", is_flag=True, help="Show the output until the end; exit with the job's code."),
        option("--dry-run", aliases=("--test-only",), is_flag=True, help="Say what would happen, submit nothing."),
        option("--parsable", is_flag=True, help="Print just the job's id."),
        option("-Q", "--quiet", is_flag=True, help="Print nothing but errors."),
    ]  # fmt: skip
