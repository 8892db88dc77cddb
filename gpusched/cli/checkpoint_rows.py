"""Checkpoints as rows of a list: what is known about each, for people and for programs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpusched.cli.checkpoint_words import Place, sentences
from gpusched.cli.output import Field, Json
from gpusched.cli.text import duration, escape, moment

if TYPE_CHECKING:
    from gpusched.checkpoint.disk.files import Checkpoint

_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def size_text(size: float | None) -> str:
    """`512B`, `4.7M`, `1.5G` (binary multiples)."""
    if size is None:
        return "-"
    for unit, letter in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f}{letter}"
    return f"{int(size)}B"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.1f} s" if value < 60 else duration(value)


def _state(row: Json) -> str:
    if row["problem"]:
        return escape(f"{row['state']}: {row['problem']}")
    notes = [word for word, said in (("newest", row["newest_good"]), ("pinned", row["pinned"])) if said]
    return ", ".join(["good", *notes])


FIELDS = {
    "checkpoint": Field(),
    "step": Field(right=True),
    "epoch": Field(right=True),
    "batch": Field(right=True),
    "size": Field(lambda row: size_text(row["size"]), right=True),
    "age": Field(lambda row: duration(row["age"]), right=True),
    "created_at": Field(lambda row: moment(row["created_at"]), header="SAVED"),
    "seconds": Field(lambda row: _seconds(row["seconds"]), header="TOOK", right=True),
    "stall": Field(lambda row: _seconds(row["stall"]), right=True),
    "ranks": Field(right=True),
    "format": Field(right=True),
    "pinned": Field(),
    "newest_good": Field(),
    "problem": Field(),
    "path": Field(),
    "state": Field(_state, color=lambda row: "red" if row["problem"] else "green" if row["newest_good"] else ""),
}
COLUMNS = ("checkpoint", "step", "epoch", "batch", "size", "age", "seconds", "stall", "ranks", "state")


def rows_of(place: Place, found: list[Checkpoint]) -> list[Json]:
    """One row per checkpoint, as --json shows it: sizes in bytes, times in seconds."""
    from gpusched.checkpoint.disk.files import pins

    newest = next((item.path for item in reversed(found) if item.good), None)
    with sentences(place):
        pinned = pins(place.directory)
    return [_row(item, item.path == newest, item.name in pinned) for item in found]


def _row(item: Checkpoint, newest: bool, pinned: bool) -> Json:
    known = bool(item.manifest)
    files = item.manifest.get("files", {})
    ranks = sum(name.startswith("own-") and name.endswith(".json") for name in files) or 1
    return {
        "checkpoint": item.name, "path": item.path, "step": item.step,
        "epoch": item.epoch if known else None, "batch": item.batch if known else None,
        "size": item.size if known else None, "created_at": item.created_at if known else None,
        "age": max(0.0, time.time() - item.created_at) if known else None,
        "seconds": item.seconds if known else None, "stall": item.manifest.get("stall"),
        "ranks": ranks if known else None, "format": item.manifest.get("format"),
        "state": "good" if item.good else "newer" if item.newer_format else "torn", "problem": item.problem,
        "newest_good": newest, "pinned": pinned,
    }  # fmt: skip
