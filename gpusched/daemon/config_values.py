"""The kinds of values that a configuration file holds: times, sizes, names, lists. Each says what it would take.

It knows nothing of what the settings mean.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gpusched.model.errors import UsageError
from gpusched.model.units import parse_duration, parse_seconds, parse_size

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Section(BaseModel):
    """A section of the file: unknown settings and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def told(parse: Any, value: str) -> Any:
    """What a parser of gpusched/model makes of a text; its error with its hint, as pydantic wants errors."""
    try:
        return parse(value)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None


def _seconds(value: Any) -> Any:
    return told(parse_seconds, value) if isinstance(value, str) else value


def _time_limit(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError('write the time in quotes, for example "2:00:00" or "90m": a bare number has no unit')
    return told(parse_duration, value) if isinstance(value, str) else value


def _mib(value: Any) -> Any:
    if value is None or (value == 0 and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError('write the size in quotes with its unit, for example "256M" or "2G"')
    return told(parse_size, value)


def _named(value: Any) -> Any:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name: letters, digits, '.', '_' and '-', at most 64")
    return value


def once(values: tuple[str, ...]) -> tuple[str, ...]:
    """These texts, if each is there once. Raises ValueError."""
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is there twice: name each once")
    return values


def _listed(value: Any) -> Any:
    """A list of texts; a TOML list arrives as a Python list, which strict tuples refuse."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return once(tuple(value))
    raise ValueError(f'{value!r} is not a list of texts such as ["a", "b"]')


Name = Annotated[str, BeforeValidator(_named)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
TimeLimit = Annotated[float | None, BeforeValidator(_time_limit)]
Mib = Annotated[int, BeforeValidator(_mib)]
Days = Annotated[float, Field(ge=0, le=36500)]
