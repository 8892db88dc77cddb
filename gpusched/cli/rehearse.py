"""`gpusched rehearse -- python train.py`: does this script resume exactly? Needs no daemon and no GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gpusched.cli.output import print_json
from gpusched.cli.settings import paint, say, settings
from gpusched.cli.text import escape
from gpusched.model.errors import UsageError

if TYPE_CHECKING:
    from gpusched.rehearse.outcome import Outcome


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n"
    "  gpusched rehearse -- python train.py --epochs 2\n"
    "  gpusched rehearse --compare '{run}/result.json' -- python train.py --out '{run}/result.json'\n"
    "  gpusched rehearse --preemptions 7 --seed 3 -- torchrun --nproc-per-node 3 train.py\n"
    "\b\nExit codes: 0 resumes exactly, 1 differs, 2 bad input, 10 the undisturbed run failed, 11 it never reaches a\n"
    "safe point, 12 it never saves, 13 it fails after a stop, 14 nothing to compare, 126 and 127 as in a shell.",
)
@click.argument("words", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@click.option("--preemptions", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="K",
              help="How often the second run is preempted.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the safe points at which it is.")
@click.option("--compare", multiple=True, metavar="FILE",
              help="Also compare this file (or directory) that the command writes. May be given several times.")
@click.option("--workdir", default="", metavar="DIR",
              help="Run the command in this directory; with {run} in it, in a new one for each run.")
@click.option("--grace", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              metavar="SECONDS", help="How long a program without a Run may take to leave when it is asked to.")
@click.option("--keep", is_flag=True, help="Keep the runs' folders: checkpoints, outputs, traces.")
@click.pass_context
def rehearse(ctx: click.Context, /, words: tuple[str, ...], keep: bool, **options: Any) -> None:
    """Find out whether a command resumes exactly after preemptions.

    It is run once undisturbed and once preempted at random safe points, each time with checkpoints of its own, and
    their last checkpoints, metrics and files are compared bit for bit. If they differ: the first step and tensor that
    do, and the likely cause. Needs no daemon and no GPU.

    The word {run} in the command, in --compare and in --workdir stands for a folder of each run's own. Otherwise both
    runs work in the same directory, and the second overwrites what the first has written there. A command without
    gpusched.checkpoint.Run is asked by SIGTERM at random times, and is to save and exit with 85.
    """
    if not words:
        raise UsageError("no command to rehearse", "write for example: gpusched rehearse -- python train.py")
    with _folder(keep) as folder, _ending():
        from gpusched.rehearse.plan import Plan
        from gpusched.rehearse.rehearsal import rehearse as run

        options["compare"] = tuple(options["compare"])
        result = run(Plan(command=words, folder=folder, **options), _tell)
        if keep:
            result.facts["folder"] = folder
    if settings.json:
        print_json(result.to_json())
    else:
        _show(result)
    ctx.exit(result.code)


def _tell(sentence: str) -> None:
    say(escape(sentence))


def _show(result: Outcome) -> None:
    print(paint(escape(result.sentence), "green" if result.code == 0 else "red"))
    for line in result.lines:
        print(f"  {escape(line)}")
    for number, cause in enumerate(result.causes):
        print(f"{'likely cause' if number == 0 else 'or'}: {escape(cause.text)}")
        if cause.hint:
            print(f"  {escape(cause.hint)}")
    for note in result.notes:
        print(f"  {escape(note)}")
    if result.log:
        print("the end of its output:")
        for line in result.log:
            print(f"  | {escape(line)}")
    if "folder" in result.facts:
        print(f"kept: {escape(str(result.facts['folder']))}")
    sys.stdout.flush()


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[str]:
    """A folder for this rehearsal, which is gone afterwards, also after Ctrl-C."""
    if keep:
        yield tempfile.mkdtemp(prefix="gpusched-rehearsal-")
        return
    with tempfile.TemporaryDirectory(prefix="gpusched-rehearsal-", ignore_cleanup_errors=True) as folder:
        yield os.path.realpath(folder)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM and SIGHUP end a rehearsal like Ctrl-C: the processes it started and its folder go with it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
