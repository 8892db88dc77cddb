"""The entry point: finds the command, runs it, and turns every error into a sentence and an exit code.

Subcommand modules are imported only when they are used, because `queue` must be quick. No option takes its default
from a GPUSCHED_* variable (click's auto_envvar_prefix): a submit inside a job would inherit the outer job's.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from gpusched import __version__
from gpusched.cli.settings import settings
from gpusched.cli.streams import prepare, print_nothing_more
from gpusched.model.errors import GpuschedError, UsageError, known

COMMANDS = {
    "submit": "submit",
    "run": "run",
    "queue": "queue",
    "show": "show",
    "logs": "logs",
    "why": "why",
    "cancel": "control",
    "hold": "control",
    "release": "control",
    "requeue": "control",
    "resubmit": "resubmit",
    "update": "update",
    "preempt": "control",
    "checkpoint": "control",
    "checkpoints": "checkpoints",
    "wait": "wait",
    "history": "history",
    "gpus": "gpus",
    "priority": "priority",
    "shares": "priority",
    "limits": "limits",
    "admin": "admin",
    "daemon": "daemon",
    "doctor": "doctor",
    "rehearse": "rehearse",
    "checkpoint-exec": "checkpoint_exec",
    "simulate": "simulate",
    "demo": "demo",
    "completion": "completion",
    "version": "version",
}
_CANNOT_PRINT = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
ALIASES = {"q": "queue", "ps": "queue"}


class LazyGroup(click.Group):
    """Commands by name, each imported from gpusched.cli.<module> when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"gpusched.cli.{COMMANDS[name]}"), name.replace("-", "_"))
        assert isinstance(command, click.Command)
        _add_common_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*COMMANDS, *ALIASES], n=1)
            error = known("command", args[0], list(COMMANDS))
            raise UsageError(error.message + (f"; did you mean {near[0]!r}?" if near else ""), error.hint)
        return super().resolve_command(ctx, args)


def _set(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value and not ctx.resilient_parsing:
        setattr(settings, str(param.name).removeprefix("set_"), value)
    return value


def _common_options() -> list[click.Option]:
    """Understood before and after the command's name."""
    return [
        click.Option(["--json", "set_json"], is_flag=True, is_eager=True, expose_value=False, callback=_set,
                     help="One JSON value on standard output; errors too."),
        click.Option(["--no-color", "set_no_color"], is_flag=True, is_eager=True, expose_value=False, callback=_set,
                     help="No colours (also: NO_COLOR=1)."),
        click.Option(["--debug", "set_debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set,
                     help="Show where an error comes from."),
        click.Option(["--socket", "set_socket"], is_eager=True, expose_value=False, callback=_set, metavar="PATH",
                     type=click.Path(), help="Talk to the daemon at this socket."),
    ]  # fmt: skip


def _add_common_options(command: click.Command) -> None:
    present = {name for param in command.params for name in param.opts}
    command.params.extend(option for option in _common_options() if not present.intersection(option.opts))
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    for child in getattr(command, "commands", {}).values():
        _add_common_options(child)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=_common_options(),
    epilog="\b\nFirst steps:\n  gpusched submit -g 1 -- python train.py\n  gpusched queue\n  gpusched logs -f @",
)
@click.version_option(__version__, message="gpusched %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """The scheduler of a shared GPU server: queues training jobs, preempts them and resumes them exactly.

    Without a command it shows the queue in short.
    """
    if ctx.invoked_subcommand is None:
        from gpusched.cli.queue import short_queue

        short_queue()


def _hint(error: click.UsageError) -> str:
    """The next step after a usage error that click found: the known options, and where the help is."""
    command = error.ctx.command_path if error.ctx else "gpusched"
    if isinstance(error, click.NoSuchOption) and error.ctx:
        from gpusched.cli.options import main_name

        names = sorted(
            main_name(param)
            for param in error.ctx.command.params
            if isinstance(param, click.Option) and not param.hidden
        )
        return f"known: {', '.join(names)}"
    return f"see: {command} --help"


def report(error: GpuschedError) -> int:
    """Print an error: a sentence and the next step on standard error, or JSON on standard output. The exit code."""
    if settings.json:
        print(json.dumps(error.to_json()), flush=True)
    else:
        print(f"gpusched: {error.message}", file=sys.stderr)
        for line in error.hint.splitlines():
            print(f"  {line}", file=sys.stderr)
    return error.exit_code


def _invoke(arguments: Sequence[str]) -> int:
    """Parse and run. Not click's own main(), which takes Ctrl-C and a closed pipe for failures of its own."""
    if "_GPUSCHED_COMPLETE" in os.environ:
        cli.main(list(arguments), prog_name="gpusched")
    try:
        with cli.make_context("gpusched", list(arguments)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as leaving:  # ctx.exit(code): a command that ends with the job's own code
        return leaving.exit_code
    return 0


def run_command(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code; raises nothing but KeyboardInterrupt's like."""
    settings.reset()
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except GpuschedError as error:
        if settings.debug:
            raise
        return report(error)
    except click.UsageError as error:
        settings.json = settings.json or _wants_json(arguments)
        return report(UsageError(error.format_message().rstrip("."), _hint(error)))
    except click.ClickException as error:
        return report(UsageError(error.format_message()))
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        print_nothing_more()  # `| head` has seen enough, which is no error
        return 0
    except Exception as error:
        if settings.debug:
            raise
        if isinstance(error, OSError) and error.errno in _CANNOT_PRINT and error.filename is None:
            return _output_is_full(error)
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return report(GpuschedError(f"this should not have happened: {text}", "once more with --debug shows where"))


def _output_is_full(error: OSError) -> int:
    """What the command did is done; only the telling failed. Not as JSON, which could not be printed either."""
    print_nothing_more()
    settings.json = False
    return report(
        GpuschedError(
            f"the output could not be written: {error.strerror}",
            "make room where it goes; what the command was asked to do may be done: see gpusched queue --all",
        )
    )


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json was given, for errors that were found before it was read."""
    own = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return "--json" in own and not any(word in ("submit", "run") for word in own)


def main() -> NoReturn:
    """The `gpusched` command."""
    prepare()
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
