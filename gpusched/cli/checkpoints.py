"""`gpusched checkpoints [JOB|DIR]`: what a job has saved; and verify, inspect, diff, rm, pin and export."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gpusched.cli import checkpoint_looks
from gpusched.cli.checkpoint_rows import COLUMNS, FIELDS, rows_of, size_text
from gpusched.cli.checkpoint_words import Place, all_of, find, in_use, one, sentences
from gpusched.cli.output import Json, Style, list_options, print_field_help, print_json, print_list, repeat, style_of
from gpusched.cli.settings import say, settings
from gpusched.cli.text import escape
from gpusched.model.errors import Refused, UsageError

if TYPE_CHECKING:
    from gpusched.checkpoint.disk.files import Checkpoint


class WhereFirst(click.Group):
    """`gpusched checkpoints 12` is `gpusched checkpoints list 12`; options may stand anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = 0
        while place < len(args) and args[place] in ("--json", "--no-color", "--debug", "--socket"):
            place += 2 if args[place] == "--socket" else 1
        word = args[place] if place < len(args) else ""
        if word not in self.commands and word not in ("-h", "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=WhereFirst)
def checkpoints() -> None:
    """Look at what a job has saved, check it, take weights out of it.

    WHERE is a job (12, 12_3, @: my last one, which is also the default) or a directory (./ckpt). One checkpoint is
    WHERE/STEP: 12/130, ./ckpt/step-130; WHERE alone means its newest good one.
    """


def where_argument(command: Any) -> Any:
    return click.argument("where", metavar="[WHERE]", default="@")(command)


@checkpoints.command("list")
@where_argument
@list_options
def list_command(where: str, **options: Any) -> None:
    """List checkpoints: the default command.

    Compares the sizes of all files with what was saved; `verify` reads every byte. STALL is how long training stood
    still for it, where it was written behind the training.
    """
    if options["help_format"]:
        print_field_help(FIELDS)
        return
    style, place = style_of(options, FIELDS), find(where)

    def show() -> None:
        rows = rows_of(place, all_of(place))
        if settings.json and not style.fields:
            print_json({**_about(place), "size": sum(row["size"] or 0 for row in rows), "checkpoints": rows})
            return
        print_list(rows, COLUMNS, FIELDS, style, "checkpoints")
        if not (settings.json or style.csv or style.noheader):
            say(_summary(place, rows))

    repeat(show, style.watch)


def _about(place: Place) -> Json:
    return {"job": place.job["job"] if place.job else None, "directory": place.directory}


def _summary(place: Place, rows: list[Json]) -> str:
    if not rows:
        return f"no checkpoints of {place.whose} yet, in {escape(place.directory)}"
    torn = sum(bool(row["problem"]) for row in rows)
    text = f"{_number(len(rows), 'checkpoint')}, {size_text(sum(row['size'] or 0 for row in rows))}"
    return f"{text}{f', {torn} not good' if torn else ''}, in {escape(place.directory)}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@checkpoints.command()
@where_argument
def verify(where: str) -> None:
    """Read every byte and compare checksums.

    Says what is torn and which checkpoint a resume would load. Exit code 1 if anything is torn, or there is nothing.
    """
    from gpusched.checkpoint.disk.files import unlisted

    place = find(where)
    found = all_of(place, checksums=True)
    rows = rows_of(place, found)
    for row, item in zip(rows, found, strict=True):
        row["unlisted"] = unlisted(item) if item.manifest else []
    loads, sentence = _what_loads(place, found)
    if settings.json:
        print_json({**_about(place), "checkpoints": rows, "loads": loads, "text": sentence})
    else:
        print_list(rows, ("checkpoint", "size", "state"), FIELDS, Style(), "checkpoints")
        print(sentence)
        for row in rows:
            if row["unlisted"]:
                say(f"{row['checkpoint']} also holds {escape(', '.join(row['unlisted']))}: never read, not checked")
    click.get_current_context().exit(0 if rows and not any(row["problem"] for row in rows) else 1)


def _what_loads(place: Place, found: list[Checkpoint]) -> tuple[str | None, str]:
    """The checkpoint that the next attempt would continue from, as the library chooses it, and a sentence."""
    if not found:
        return None, f"no checkpoints of {place.whose}: a run starts from zero"
    if place.name:
        good = found[0].good
        return (place.name if good else None), f"{place.name} is {'good' if good else 'NOT good'}"
    for item in reversed(found):
        if item.newer_format:
            return None, f"a resume stops at {item.name}: {item.problem}"
        if item.good:
            return item.name, f"a resume loads {item.name}"
    return None, "NONE is good: a resume stops with an error, it does not start from zero by itself"


@checkpoints.command()
@click.argument("words", metavar="CHECKPOINT...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also the newest good one, and pinned ones.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, though a run saves there.")
def rm(words: tuple[str, ...], force: bool, yes: bool) -> None:
    """Delete checkpoints: 12/100 12/110, or ./ckpt/step-100.

    Never the newest good one, from which a resume would continue, unless --force says so.
    """
    from gpusched.checkpoint.disk.files import delete

    picked = _picked(words, "rm")
    for place, names in picked:
        _refuse_the_last(place, names, force)
    busy = [f"{place.whose}: {why}" for place, _ in picked if (why := in_use(place))]
    if busy and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{busy[0]}, and may need what you delete", "add --yes to mean it")
        click.confirm(f"{'; '.join(busy)}. Delete all the same?", abort=True, err=True)
    deleted = []
    for place, names in picked:
        for item in (one(Place(place.directory, name, place.job)) for name in names):
            with sentences(place):
                delete(item)
            deleted.append({"checkpoint": item.name, "path": item.path, "size": item.size})
            if not settings.json:
                print(f"deleted {escape(item.path)} ({size_text(item.size)})")
    if settings.json:
        print_json({"deleted": deleted})


def _picked(words: tuple[str, ...], verb: str) -> list[tuple[Place, list[str]]]:
    """The named checkpoints by directory; every one is there. Raises UsageError for a word that names none."""
    found: dict[str, tuple[Place, list[str]]] = {}
    for word in words:
        place = find(word)
        if not place.name:
            example = f"write for example: gpusched checkpoints {verb} {word}/130"
            raise UsageError(f"{word!r} names no checkpoint", example)
        names = found.setdefault(place.directory, (place, []))[1]
        if one(place).name not in names:
            names.append(place.name)
    return list(found.values())


def _refuse_the_last(place: Place, names: list[str], force: bool) -> None:
    from gpusched.checkpoint.disk.files import pins

    good = [item.name for item in all_of(Place(place.directory, "", place.job)) if item.good]
    with sentences(place):
        pinned = sorted(pins(place.directory).intersection(names))
    if force:
        return
    if good and good[-1] in names:
        rest = [name for name in good if name not in names]
        after = f"would go back to {rest[-1]}" if rest else "would have nothing to load"
        text = f"{good[-1]} is the newest good checkpoint of {place.whose}: a resume {after}"
        raise Refused(text, "add --force to mean it")
    if pinned:
        raise Refused(f"{pinned[0]} of {place.whose} is pinned", "add --force to mean it")


@checkpoints.command()
@click.argument("words", metavar="CHECKPOINT...", nargs=-1, required=True)
@click.option("--off", is_flag=True, help="Let go of it again.")
def pin(words: tuple[str, ...], off: bool) -> None:
    """Keep checkpoints for good: a run deletes its older ones, but never these."""
    from gpusched.checkpoint.disk import files

    picked = _picked(words, "pin")
    for place, names in picked:
        for name in names:
            if not name.startswith("step-"):
                hint = "copy it elsewhere, or raise save_total_limit"
                raise Refused(f"{name} is Hugging Face's own, which deletes its old ones by its own rules", hint)
            with sentences(place):
                files.pin(place.directory, name, not off)
    done = [name for _, names in picked for name in names]
    if settings.json:
        print_json({"pinned" if not off else "unpinned": done})
    else:
        print(f"{', '.join(done)}: {'as any other again' if off else 'kept until you delete it'}")


for _command in (checkpoint_looks.inspect, checkpoint_looks.diff, checkpoint_looks.export):
    checkpoints.add_command(_command)
