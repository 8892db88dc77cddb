"""Options inside a script: leading `#GPUSCHED` lines, or `#SBATCH` lines where there are none of ours.

Only comment lines at the top of the first 32 KiB count. The text is literal: no variables, no globbing. The same table
of options as the command line reads it, so an unknown option is an error that names file and line. Of #SBATCH lines
what means the same here is honoured; the rest is listed, not guessed at.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource

from gpusched.cli.options import how_params, main_name, submit_params
from gpusched.model.errors import UsageError

HEAD = 32 * 1024  # bytes of a script that are looked at
_LINE = re.compile(r"#\s*(GPUSCHED|SBATCH)(?:\s+(.*))?$")

# Slurm's options that mean the same here, by their long name; those with an entry in _SHORT also by their letter.
_SHARED = {
    "nice",
    "job-name", "gpus", "gres", "qos", "partition", "reservation", "account", "time", "begin", "dependency", "array",
    "export", "chdir", "output", "error", "requeue", "no-requeue", "signal", "hold", "wait", "comment", "parsable",
    "quiet",
}  # fmt: skip
_RENAMED = {"gpus-per-node": "gpus", "workdir": "chdir"}
_SHORT = {
    "J": "job-name", "G": "gpus", "q": "qos", "p": "partition", "A": "account", "t": "time", "b": "begin",
    "d": "dependency", "a": "array", "D": "chdir", "o": "output", "e": "error", "H": "hold", "W": "wait", "Q": "quiet",
}  # fmt: skip
_FLAGS = {"requeue", "no-requeue", "hold", "wait", "parsable", "quiet"}


@dataclass(slots=True)
class Given:
    """What was said explicitly: values by parameter name. `ignored` are #SBATCH words that mean nothing here."""

    values: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def add(self, values: dict[str, Any]) -> None:
        """Later ones win; repeatable options collect."""
        for name, value in values.items():
            before = self.values.get(name)
            self.values[name] = (*before, *value) if isinstance(before, tuple) and name in ("env", "after") else value


def given_of(ctx: click.Context) -> dict[str, Any]:
    """The parameters of a context that were really typed, not defaulted."""
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _comment_lines(head: str) -> Iterator[tuple[int, str, str]]:
    """(line number, GPUSCHED or SBATCH, text) of the directives among the leading comment lines."""
    for number, line in enumerate(head.splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            return
        if found := _LINE.match(text):
            yield number, found[1], found[2] or ""


def read_directives(head: bytes, name: str) -> Given:
    """The options in the head of a script called `name`. Raises UsageError naming file and line."""
    given = Given()
    if b"\0" in head:
        return given  # a program, not a script
    lines = list(_comment_lines(head[:HEAD].decode("utf-8", "replace")))
    ours = [line for line in lines if line[1] == "GPUSCHED"]
    for number, kind, text in ours or lines:
        place = f"{name}:{number}"
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise UsageError(f"{place}: {str(error).lower()}", f"the line is: #{kind} {text}") from None
        if kind == "SBATCH":
            words, ignored = _translate(words)
            given.ignored += [f"{place}: {word}" for word in ignored]
        given.add(_parse(words, place))
    return given


def _parse(words: list[str], place: str) -> dict[str, Any]:
    """One line through the table of options."""
    command = click.Command("directives", params=[*submit_params(), *how_params()], add_help_option=False)
    try:
        return given_of(command.make_context(place, list(words)))
    except click.NoSuchOption as error:
        names = ", ".join(sorted(main_name(param) for param in command.params if isinstance(param, click.Option)))
        raise UsageError(f"{place}: no such option: {error.option_name}", f"known: {names}") from None
    except click.UsageError as error:
        raise UsageError(f"{place}: {error.format_message().rstrip('.')}", "see: gpusched submit --help") from None
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", error.hint) from None


def _translate(words: list[str]) -> tuple[list[str], list[str]]:
    """Slurm's words into ours, and those that mean nothing here."""
    kept: list[str] = []
    ignored: list[str] = []
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        name, value = _split(word)
        if name is None:
            ignored.append(word)
            continue
        takes_next = value is None and name not in _FLAGS and place < len(words) and not words[place].startswith("-")
        if takes_next:
            value = words[place]
            place += 1
        shown = word if not takes_next else f"{word} {value}"
        name = _RENAMED.get(name, name)
        if name == "gres" and value is not None:
            value = next((item for item in value.split(",") if item.split(":")[0] == "gpu"), None)
            name = name if value is not None else "not-here"
        if name not in _SHARED or (value is None) != (name in _FLAGS):
            ignored.append(shown)
        elif value is None:
            kept.append(f"--{name}")
        else:
            kept += [f"--{name}", value]
    return kept, ignored


def _split(word: str) -> tuple[str | None, str | None]:
    """Option name (long form where it has one here) and attached value of one word of Slurm's."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name, value if equals else None
    if word.startswith("-") and len(word) > 1:
        value = word[2:].removeprefix("=")
        return _SHORT.get(word[1], word[1]), value or None
    return None, None
