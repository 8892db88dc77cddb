"""Reads Markdown as far as the tests of the documentation need it: code, tables, sections, links and their anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_OPERATORS = {";", "&&", "||", "|", "&", "(", ")", ">", ">>", "<"}


@dataclass(frozen=True)
class Page:
    path: Path
    text: str

    @property
    def prose(self) -> str:
        """Everything outside fenced code."""
        return _FENCE.sub("", self.text)

    def fenced(self, *languages: str) -> list[str]:
        return [body for language, body in _FENCE.findall(self.text) if language in languages]

    def spans(self) -> list[str]:
        """Code inside sentences and tables."""
        return [span.replace("\\|", "|") for span in _SPAN.findall(self.prose)]

    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        return {slug(heading) for heading in _HEADING.findall(self.prose)}

    def section(self, heading: str) -> Page:
        """What stands below a heading, until the next one of its level or above."""
        found = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,6}} |\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert found, f"{self.path.name} has no section {heading!r}"
        return Page(self.path, found[2])

    def rows(self) -> list[list[str]]:
        """The cells of all tables."""
        lines = [line for line in self.text.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        return [row for row in cells if not set("".join(row)) <= set("-: ")]

    def first_cells(self) -> list[str]:
        """The code in the first column of all tables."""
        return [span for row in self.rows() for span in _SPAN.findall(row[0])]

    def commands(self, program: str) -> Iterator[list[str]]:
        """The arguments of every call of a program in shell blocks, transcripts and sentences."""
        lines = [line[2:] for body in self.fenced("console") for line in body.splitlines() if line.startswith("$ ")]
        lines += [line for body in self.fenced("sh", "bash") for line in body.splitlines()]
        lines += [span for span in self.spans() if re.match(rf"\$?\(?{program} |\w+=\S* *{program} ", span)]
        for line in lines:
            inner = re.findall(rf"\$\(({program} [^)]*)\)", line)
            for text in (re.sub(r"\$\([^)]*\)", "X", line), *inner):
                yield from _calls(text, program)


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _calls(line: str, program: str) -> Iterator[list[str]]:
    if program not in line:
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _OPERATORS:
            call.append(word)
            continue
        while call and re.fullmatch(r"[A-Z_]+=.*|export", call[0]):
            call.pop(0)
        if call and call[0] == program:
            yield call[1:]
        call = []
