"""Says what is wrong with a configuration file as a person would: file, line, setting, what is allowed.

It knows TOML and pydantic's errors, and nothing of what the settings mean.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gpusched.model.errors import UsageError

Loc = tuple[str, ...]
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$")


def find_lines(text: str) -> dict[Loc, int]:
    """The line (from 1) on which each setting and each section of a TOML text begins."""
    lines: dict[Loc, int] = {}
    section: Loc = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _dotted(header[1])
            found = section
        elif key := _KEY.match(line):
            found = section + _dotted(key[1])
        else:
            continue
        for depth in range(1, len(found) + 1):
            lines.setdefault(found[:depth], number)
    return lines


def _dotted(text: str) -> Loc:
    """The parts of a dotted key, quotes and all, as TOML reads it."""
    try:
        value: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(value, dict):
        [(part, value)] = value.items()
        parts.append(part)
    return tuple(parts)


def line_of(lines: dict[Loc, int], loc: Sequence[str | int]) -> int | None:
    """The line of a setting, or of the innermost thing around it that has one."""
    path = tuple(str(part) for part in loc)
    return next((lines[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in lines), None)


def at(path: str, text: str, loc: Sequence[str | int]) -> str:
    """`file:line`, for the beginning of a message."""
    line = line_of(find_lines(text), loc)
    return f"{path}:{line}" if line is not None else path


def broken_toml(path: str, text: str, error: tomllib.TOMLDecodeError) -> UsageError:
    """The file is not TOML at all (or has a setting twice)."""
    found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error))
    what, _, _ = str(error).partition(" (at ")
    line = found[2] if found else str(max(1, len(text.splitlines())))  # else: "at end of document"
    where = f"{path}:{line}"
    hint = "text needs quotes, lists need [ ], true and false are lower case"
    if "overwrite" in what or "twice" in what:
        what, hint = "this setting or section is there twice", "keep one of them"
    return UsageError(f"{where}: {what}", hint)


def explained(path: str, text: str, error: ValidationError, model: type[BaseModel]) -> UsageError:
    """Everything that is wrong, each with its line, in the order of the file."""
    lines, values = find_lines(text), tomllib.loads(text)
    told = []
    for detail in error.errors(include_url=False):
        line = line_of(lines, detail["loc"])
        where = f"{path}:{line}" if line is not None else path
        written = _written(values, detail["loc"], detail["input"])
        told.append((line or 0, f"{where}: {_sentence(detail, model, written)}"))
    told.sort(key=lambda pair: pair[0])
    return UsageError(
        "\n".join(sentence for _, sentence in told), "docs/config.example.toml shows every setting with its default"
    )


def _written(values: Any, loc: Sequence[str | int], otherwise: Any) -> Any:
    """A value as it stands in the file: pydantic tells what has been made of it."""
    for part in loc:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return otherwise
    return values


_TYPES = {
    "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "string_type": "text in quotes",
}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def _bound(detail: Any, written: Any) -> str:
    """`at least 60`, and of a setting that was written as a time `at least 1m`."""
    [(kind, number)] = ((kind, detail["ctx"][kind]) for kind in _BOUNDS if kind in detail["ctx"])
    shown = f"{number:.12g}"
    if isinstance(written, str):
        unit, letter = next(((u, n) for u, n in _UNITS if number and number % u == 0), (1, "s"))
        shown = f"{number / unit:.12g}{letter}"
    return f"{_BOUNDS[kind]} {shown}"


def _toml(written: Any) -> str:
    """Nearly as it stands in the file."""
    return str(written).lower() if isinstance(written, bool) else repr(written)


def _sentence(detail: Any, model: type[BaseModel], written: Any) -> str:
    loc = tuple(str(part) for part in detail["loc"])
    name = ".".join(part for part in loc if part != "[key]")
    match detail["type"]:
        case "extra_forbidden":
            known = _known_settings(model, loc[:-1])
            near = difflib.get_close_matches(loc[-1], known, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            return f"unknown setting {name!r}{guess} (known here: {', '.join(known)})"
        case "missing":
            return f"{name!r} is missing"
        case "dict_type" | "model_type":
            return f"{name!r} is a section, with its settings in the lines below [{name}]"
        case "too_short":
            return f"{name!r} is empty"
        case "enum" | "literal_error":
            return f"{name!r} is {detail['input']!r}; allowed: {detail['ctx']['expected']}"
        case "value_error":
            return f"{name!r}: {detail['ctx']['error']}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            return f"{name!r} is {written!r}: it must be {_bound(detail, written)}"
        case kind if kind in _TYPES:
            return f"{name!r} is {_toml(written)}: it must be {_TYPES[kind]}"
        case _:
            return f"{name!r} is {written!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _known_settings(model: type[BaseModel], loc: Loc) -> list[str]:
    """The names that may stand at a place of the file."""
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[part].annotation
        else:  # a section of sections, such as [qos.NAME]
            here = get_args(here)[-1]
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
