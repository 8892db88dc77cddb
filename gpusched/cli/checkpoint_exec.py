"""`gpusched checkpoint-exec … -- program`: makes a program resumable that knows nothing of gpusched.

The machinery is gpusched/checkpoint/wrap.py, which runs in training environments without click, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gpusched.cli.settings import settings
from gpusched.model.errors import GpuschedError, UsageError


def _cannot_run(name: str, why: str, exit_code: int) -> GpuschedError:
    """The program could not be started; the exit code is a shell's."""
    error = GpuschedError(f"cannot run {name}: {why}", "is it installed, and executable?")
    error.exit_code = exit_code
    return error


def _parsed(name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """An option's value by the function of this name in wrap.py."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        from gpusched.checkpoint import wrap

        try:
            return None if value is None else getattr(wrap, name)(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return parse


@click.command(
    "checkpoint-exec",
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n"
    "  a program that writes state.db on SIGTERM and leaves:\n"
    "    gpusched submit -- gpusched checkpoint-exec --files state.db -- ./simulate\n"
    "  GROMACS, which continues with other arguments and leaves with 0 after a signal:\n"
    "    gpusched checkpoint-exec --files 'md*.cpt' --saved-code 0 \\\n"
    "      --restart 'exec gmx mdrun -deffnm md -cpi md.cpt' -- gmx mdrun -deffnm md\n"
    "  anything under DMTCP, every half hour and at stops:\n"
    "    gpusched checkpoint-exec --every 30m --files images \\\n"
    "      --save 'dmtcp_command --bcheckpoint' --restart 'exec dmtcp_restart images/*.dmtcp' \\\n"
    "      -- dmtcp_launch --ckptdir images ./simulate\n"
    "\b\nIn an environment without click: python -m gpusched.checkpoint.wrap, with the same options.",
)
@click.argument("words", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@click.option("--save", default="", metavar="CMD",
              help="Shell command that has the running program's state written. It may write into $GPUSCHED_SAVE_DIR, "
                   "and finds the program at $GPUSCHED_PROGRAM_PID. It must return when the state is complete.")
@click.option("--restore", default="", metavar="CMD",
              help="Shell command to run before the program if there is a saved state; $GPUSCHED_SAVE_DIR has it.")
@click.option("--restart", default="", metavar="CMD",
              help="Shell command to run in the program's place if there is a saved state.")
@click.option("--files", multiple=True, metavar="PATH",
              help="File, directory or pattern that makes up the state: saved with it and put back before the program "
                   "starts again. May be given several times.")
@click.option("--every", callback=_parsed("seconds"), metavar="TIME",
              help="Save every so often as well, while the program runs. Needs --save or --files.")
@click.option("--signal", default="TERM", show_default=True, callback=_parsed("signal_number"), metavar="SIG",
              help="Tells the program to write its state and leave.")
@click.option("--saved-code", multiple=True, type=click.IntRange(0, 255), metavar="CODE",
              help="Exit code of the program that means it has saved after the signal (default 85).")
@click.option("--grace", default="30s", show_default=True, callback=_parsed("seconds"), metavar="TIME",
              help="How long saving and leaving may take; never longer than the scheduler waits.")
@click.pass_context
def checkpoint_exec(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Run any program so that it can be preempted and resumed, without changing it.

    When the scheduler asks it to stop: --save CMD is run, or without one the program is sent the signal and may write
    its state and leave. Then the --files are copied into the checkpoint directory, atomically, and only when they are
    safe there the job says that it has saved, and ends with 85. When it is started again the files are put back and
    the program runs again. With --save or --files, `gpusched checkpoint` saves without stopping.

    What is saved is as good as what the program writes: without --save, files that it writes only now and then make
    it continue from there. A program that ends with 0 is done, whatever it was asked. Its exit code is passed on.
    Outside gpusched it is simply run.
    """
    from gpusched import rundir
    from gpusched.checkpoint import CheckpointError, wrap

    if not words:
        raise UsageError("no command to run", "write for example: gpusched checkpoint-exec --files state -- ./program")
    if options["every"] and not (options["save"] or options["files"]):
        raise UsageError("--every needs something to save", "add --files PATH or --save CMD")
    codes = tuple(options.pop("saved_code")) or (rundir.EXIT_SAVED,)
    options["files"] = tuple(options["files"])
    settings.json = False  # standard output belongs to the program
    try:
        code = wrap.run(wrap.Plan(command=words, saved_codes=codes, **options))
    except CheckpointError as error:
        raise GpuschedError(error.message, error.hint) from None
    except FileNotFoundError as error:
        raise _cannot_run(words[0], str(error.strerror), 127) from None
    except OSError as error:
        raise _cannot_run(words[0], str(error.strerror or error), 126) from None
    ctx.exit(code)
