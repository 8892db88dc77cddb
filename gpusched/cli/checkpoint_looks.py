"""`gpusched checkpoints inspect`, `diff` and `export`: what is in a checkpoint. Nothing in it is ever executed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gpusched.cli.checkpoint_rows import size_text
from gpusched.cli.checkpoint_words import Place, chosen, find, sentences
from gpusched.cli.output import Field, Json, Style, list_options, print_field_help, print_json, print_list, style_of
from gpusched.cli.settings import paint, say, settings
from gpusched.cli.text import escape, moment
from gpusched.model.errors import NotFound

if TYPE_CHECKING:
    from gpusched.checkpoint.disk.files import Checkpoint
    from gpusched.checkpoint.disk.inspect import Content, Entry

_SHOWN = 40  # differences, unless --all
_LONG = 80


def _size(row: Json) -> str:
    return size_text(row["size"]) if row["size"] is not None else ""


def _what(row: Json) -> str:
    """The shape of a tensor, or the value."""
    if row["shape"] is not None:
        return str(row["shape"])
    text = escape(row["value"])
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


_FIELDS = {
    "place": Field(lambda row: escape(_place(row))),
    "rank": Field(right=True),
    "kind": Field(),
    "shape": Field(_what, header="SHAPE OR VALUE"),
    "value": Field(),
    "size": Field(_size, right=True),
}
_COLUMNS = ("place", "kind", "size", "shape")


def _place(row: Json) -> str:
    return str(row["place"]) if row["rank"] is None else f"rank {row['rank']}: {row['place']}"


@click.command()
@click.argument("where", metavar="[CHECKPOINT]", default="@")
@click.option("--part", metavar="PLACE", help="Only this part: model, optimizer/state, rng…")
@list_options
def inspect(where: str, part: str | None, **options: Any) -> None:
    """Show what is in a checkpoint: names, shapes, kinds of number, plain values, and what it was made with.

    Reads headers only: no torch, nothing is executed. CHECKPOINT may also be any file of weights (.pt, .safetensors).
    """
    from gpusched.checkpoint.disk.inspect import entries, read_content

    if options["help_format"]:
        print_field_help(_FIELDS)
        return
    style = style_of(options, _FIELDS)
    if os.path.isfile(where):
        _inspect_file(where, style)
        return
    place = find(where)
    found = chosen(place)
    with sentences(place):
        content = read_content(found.path)
    rows = [_row(entry, len(content.own) > 1) for entry in entries(content)]
    if part is not None:
        rows = [row for row in rows if f"{row['place']}/".startswith(f"{part.strip('/')}/")]
        if not rows:
            tops = ", ".join(sorted({*content.shared, *(key for tree in content.own.values() for key in tree)}))
            raise NotFound(f"{found.name} has nothing at {part}", f"there are: {escape(tops)}")
    if settings.json and not style.fields:
        print_json({**_facts(found, content), "entries": rows})
        return
    if not (settings.json or style.csv or style.noheader):
        print("\n".join(_head(found, content, rows)))
    print_list(rows, _COLUMNS, _FIELDS, style, "entries")


def _inspect_file(path: str, style: Style) -> None:
    """What is in somebody's file of weights. Objects in it are named, never made."""
    from gpusched.checkpoint.disk.inspect import entries_of_file

    with sentences(Place(os.path.dirname(os.path.abspath(path)))):
        rows = [_row(entry, False) for entry in entries_of_file(path)]
    if settings.json and not style.fields:
        print_json({"path": os.path.abspath(path), "entries": rows})
    else:
        print_list(rows, _COLUMNS, _FIELDS, style, "entries")


def _row(entry: Entry, several: bool) -> Json:
    from gpusched.checkpoint.disk.arrays import Array
    from gpusched.checkpoint.disk.inspect import Items, Plain

    node, rank = entry.node, entry.rank if several else None
    row: Json = {"place": entry.place, "rank": rank, "kind": "", "shape": None, "size": None, "value": None}
    if isinstance(node, Array):
        kind = node.dtype if node.kind == "tensor" else f"numpy {node.dtype}"
        kind += f" in {node.pieces} pieces" if node.pieces > 1 else ""
        return {**row, "kind": kind, "shape": list(node.shape), "size": node.size}
    if isinstance(node, Plain):
        return {**row, "kind": node.type, "value": node.text}
    if isinstance(node, Items):
        texts = [one.text for one in node.items if isinstance(one, Plain)]
        return {**row, "kind": f"{node.type} of {len(node.items)}", "value": ", ".join(texts)}
    return {**row, "kind": "empty", "value": ""}


def _facts(found: Checkpoint, content: Content) -> Json:
    return {
        "path": found.path, "checkpoint": found.name, "step": found.step, "epoch": found.epoch, "batch": found.batch,
        "size": found.size, "created_at": found.created_at, "seconds": found.seconds,
        "format": content.manifest.get("format"), "ranks": len(content.own) or 1,
        "environment": content.manifest.get("environment") or {}, "parent": content.manifest.get("parent") or None,
    }  # fmt: skip


def _head(found: Checkpoint, content: Content, rows: list[Json]) -> list[str]:
    facts = _facts(found, content)
    made = "  ".join(f"{key} {value}" for key, value in facts["environment"].items())
    parts: dict[str, list[Json]] = {}
    for row in rows:
        if row["shape"] is not None:
            parts.setdefault(row["place"].split("/")[0], []).append(row)
    lines = [
        paint(escape(found.path), "bold"),
        f"  saved      {moment(found.created_at)}, step {found.step}, epoch {found.epoch}, batch {found.batch}",
        f"  size       {size_text(found.size)} of {facts['ranks']} rank{'' if facts['ranks'] == 1 else 's'}",
        f"  made with  {escape(made) or 'unknown'}",
    ]
    width = max(10, *(len(name) for name in parts)) if parts else 10
    lines += [
        f"  {escape(name):<{width}} {len(group)} tensors, {sum(_count(row['shape']) for row in group):,} numbers, "
        f"{size_text(sum(row['size'] for row in group))}"
        for name, group in parts.items()
    ]
    return [*lines, ""]


def _count(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--all", "everything", is_flag=True, help=f"Every difference, not just the first {_SHOWN}.")
def diff(first: str, second: str, everything: bool) -> None:
    """Compare two checkpoints bit for bit: tensors, moments, generators, values.

    A and B are like 12/100 and 12/130, or 12 and ./ckpt for the newest good ones. Exit code 0 if all bits are equal,
    1 if not.
    """
    from gpusched.checkpoint.disk.compare import differences
    from gpusched.checkpoint.disk.inspect import read_content

    places = find(first), find(second)
    found = chosen(places[0]), chosen(places[1])
    with sentences(places[0]):
        contents = read_content(found[0].path), read_content(found[1].path)
        unequal = list(differences(*contents))
    rows = [{"place": one.place, "what": one.what, "detail": one.detail, "text": str(one)} for one in unequal]
    if settings.json:
        print_json({"a": found[0].path, "b": found[1].path, "equal": not rows, "differences": rows})
    else:
        _print_differences(found, rows, everything)
        _say_why(places, found, contents, bool(rows))
    click.get_current_context().exit(1 if rows else 0)


def _print_differences(found: tuple[Checkpoint, Checkpoint], rows: list[Json], everything: bool) -> None:
    for name, item in zip("AB", found, strict=True):
        print(f"{name}  {escape(item.path)}  (step {item.step}, epoch {item.epoch}, batch {item.batch})")
    if not rows:
        print("equal: all tensors and values have the same bits")
        return
    print(f"{len(rows)} difference{'' if len(rows) == 1 else 's'} (A and B):")
    for row in rows if everything else rows[:_SHOWN]:
        print(f"  {escape(row['text'])}")
    if len(rows) > _SHOWN and not everything:
        say(f"and {len(rows) - _SHOWN} more: --all shows them")


def _say_why(
    places: tuple[Place, Place], found: tuple[Checkpoint, Checkpoint], contents: tuple[Content, Content], differ: bool
) -> None:
    """What may explain differences: another environment, or a damaged file (which only a checksum tells)."""
    from gpusched.checkpoint.disk.files import examine
    from gpusched.checkpoint.state.environment import changes

    if not differ:
        return
    made = [content.manifest.get("environment") or {} for content in contents]
    if changed := changes(*made):
        say(f"made in different environments: {escape(', '.join(changed))}")
    for item in found:
        if problem := examine(item.path).problem:
            say(f"{escape(item.path)} is damaged: {escape(problem)}")


@click.command()
@click.argument("where", metavar="[CHECKPOINT]", default="@")
@click.option("--to", "target", required=True, type=click.Path(dir_okay=False), metavar="FILE",
              help="weights.safetensors or weights.pt.")  # fmt: skip
@click.option("--part", default="", metavar="NAME", help="Which registered object (default: the model).")
@click.option("--ema", is_flag=True, help="The averaged weights, under the model's names.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def export(where: str, target: str, part: str, ema: bool, force: bool) -> None:
    """Write the weights into a file that needs nothing of gpusched.

    A plain state_dict: torch.load(weights_only=True) or safetensors loads it. Every byte is checked first.
    """
    from gpusched.checkpoint.disk.export import export as write

    place = find(where)
    found = chosen(place, checksums=True)
    with sentences(place):
        done = write(found.path, target, part, ema, force)
    if settings.json:
        facts = {"checkpoint": found.path, "file": os.path.abspath(target), "part": done.part, "size": done.size}
        print_json({**facts, "tensors": done.tensors, "numbers": done.numbers, "left_out": list(done.left_out)})
        return
    numbers = f"{done.tensors} tensors, {done.numbers:,} numbers, {size_text(done.size)}"
    print(f"wrote {escape(done.part)} of {found.name} to {escape(target)}: {numbers}")
    if done.left_out:
        say(f"left out, since they are no tensors: {escape(', '.join(done.left_out))}")
