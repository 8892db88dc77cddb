"""`gpusched submit [options] [--] CMD…`: puts a job into the queue."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from gpusched.cli import estimate
from gpusched.cli.connect import connect
from gpusched.cli.directives import Given, given_of, read_directives
from gpusched.cli.options import how_params, submit_params
from gpusched.cli.output import Json, print_json
from gpusched.cli.script import find_script, runnable
from gpusched.cli.settings import say, settings
from gpusched.cli.submission import build
from gpusched.cli.text import escape
from gpusched.client import Client
from gpusched.model.errors import UsageError
from gpusched.model.units import format_duration


def prepare(client: Client, ctx: click.Context, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of the submit and all options that were given (in the script, then on the command line, which wins)."""
    if not words:
        raise UsageError("there is no command to run", f"write: {ctx.command_path} [options] -- python train.py")
    script = find_script(words)
    given = read_directives(script.head, words[0]) if script else Given()
    given.add({name: value for name, value in given_of(ctx).items() if name != "words"})
    if given.ignored and not given.values.get("quiet"):
        say("gpusched: these #SBATCH options mean nothing here and are ignored:")
        for line in given.ignored:
            say(f"  {line}")
    command = runnable(script, words[1:]) if script else list(words)
    return build(client, given.values, command, script), given.values


@click.command(
    params=[*submit_params(), *how_params()],
    # Nothing after the first word of CMD is ours: `submit python t.py --gpus 3` gives --gpus to t.py.
    context_settings={"allow_interspersed_args": False},
    epilog="A script may carry options in its first comment lines: #GPUSCHED --gpus 2 --time 4:00:00 "
    "(or #SBATCH lines). The command line wins. A script that is not executable is run by the interpreter its #! line "
    "names, else by its extension (.py, .sh), else by sh.",
)
@click.argument("words", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def submit(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Put a command or a script into the queue.

    Options come before the command; everything after its first word belongs to the command.
    """
    with connect() as client:
        body, values = prepare(client, ctx, words)
        follows = bool(values.get("follow"))
        if follows:
            one_output(body, "submit it without --follow; see: gpusched logs JOB_INDEX")
        begin = existing_output(body) if follows else 0
        answer = client.submit(body, dry_run=bool(values.get("dry_run")))
        tell(answer, body, values)
        if answer.get("dry_run"):
            return
        if follows:
            from gpusched.cli.run import Foreground

            ctx.exit(Foreground(client, str(answer["job"]), begin, quiet=is_quiet(values)).follow())
        if values.get("wait"):
            from gpusched.cli.wait import wait_for

            sys.stdout.flush()
            jobs, code = wait_for(client, [str(answer["job"])])
            for job in jobs if not is_quiet(values) else ():
                if job.get("exit_status"):
                    say(f"gpusched: job {job['job']} {job['state']}: {escape(job.get('exit_text') or '')}")
            ctx.exit(code)


def one_output(body: Mapping[str, Any], hint: str) -> None:
    """Refuse to follow what has no single output. Raises UsageError."""
    for name in ("array", "cron"):
        if name in body:
            raise UsageError(f"a job with --{name} runs more than once: there is no single output to follow", hint)


def existing_output(body: Mapping[str, Any]) -> int:
    """Size of an output file that is there already: a job appends, and only what is new belongs to this one."""
    pattern = body.get("output") or "%"
    if "%" in pattern:
        return 0
    try:
        return os.stat(os.path.join(body["cwd"], pattern)).st_size
    except OSError:
        return 0


def is_quiet(values: Mapping[str, Any]) -> bool:
    return bool(values.get("quiet") or values.get("parsable") or settings.json)


def tell(answer: Json, body: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Say what happened, with the parsed values read back."""
    if settings.json:
        print_json(answer)
    elif values.get("parsable") and not answer.get("dry_run"):
        print(answer["job"])
    elif not values.get("quiet"):
        print(sentence(answer, body))
        starts = estimate.sentence(answer.get("estimated_start"))
        if starts and starts != "now":
            print(f"  estimated start: {escape(starts)}")
        for line in confirmations(body):
            say(f"  {line}")
        if not answer.get("dry_run") and sys.stderr.isatty() and not values.get("follow"):
            say(f"  output: gpusched logs -f {answer['job']}")


def sentence(answer: Json, body: Mapping[str, Any]) -> str:
    """`job 42 submitted (time limit 2:00:00): starts on device 0`."""
    count = answer.get("count") or len(answer.get("ids") or ())
    what = f"array {answer['job']} of {count} jobs" if "array" in body else f"job {answer['job']}"
    done = "would be submitted" if answer.get("dry_run") else "submitted"
    if answer.get("dry_run"):
        what = f"an array of {count} jobs" if "array" in body and count else "the job"
    limit = f" (time limit {format_duration(body['time_limit'])})" if body.get("time_limit") else ""
    note = f": {escape(answer['note'])}" if answer.get("note") else ""
    return f"{what} {done}{limit}{note}"


def confirmations(body: Mapping[str, Any]) -> list[str]:
    """Times as they were understood, in words."""
    lines = []
    if "begin" in body:
        when = time.strftime("%a %Y-%m-%d %H:%M:%S", time.localtime(body["begin"]))
        passed = " (that is past: it may start at once)" if body["begin"] < time.time() - 1 else ""
        lines.append(f"begins not before {when}{passed}")
    if "cron" in body:
        from cronsim import CronSim

        from gpusched.cli.submission import local_now

        now = local_now().replace(tzinfo=None)
        runs = CronSim(body["cron"], now)
        lines.append(f"{runs.explain()}; next: {next(runs):%a %Y-%m-%d %H:%M}")
    return lines
