"""Slurm's filename patterns: `%j`, `%A_%a`, `%x`, zero padding as in `%4j`. Names are values, never path parts."""

from __future__ import annotations

import re

from gpusched.model.errors import UsageError, known

_LETTERS = ("%j", "%A", "%a", "%x", "%u", "%r", "%%")
_PIECE = re.compile(r"%(?P<width>[0-9]*)(?P<letter>.?)", re.DOTALL)
MAX_WIDTH = 10  # digits, as in Slurm


def expand(
    pattern: str,
    *,
    job_id: int,
    array_id: int | None,
    array_index: int | None,
    name: str,
    user: str,
    restart: int,
) -> str:
    """The file name that a pattern stands for.

    %j job id · %A id of the array (the job id if it is none) · %a array index (0 if it is none) · %x job name ·
    %u user name · %r number of the restart, from 0 · %% a percent sign. A width pads numbers with zeros.
    Raises UsageError for any other letter.
    """
    numbers = {
        "j": job_id,
        "A": job_id if array_id is None else array_id,
        "a": 0 if array_index is None else array_index,
        "r": restart,
    }
    words = {"x": _as_file_name(name), "u": _as_file_name(user)}

    def value(piece: re.Match[str]) -> str:
        letter, width = piece["letter"], piece["width"]
        if letter in numbers:
            return str(numbers[letter]).zfill(min(int(width or 0), MAX_WIDTH) if len(width) < 4 else MAX_WIDTH)
        if letter in words:
            return words[letter]
        if letter == "%" and not width:
            return "%"
        raise known(f"filename pattern in {pattern!r}:", piece[0], _LETTERS)

    return _PIECE.sub(value, pattern)


def check(pattern: str) -> None:
    """Raise UsageError for a pattern that cannot name a file."""
    if not pattern or "\0" in pattern:
        raise UsageError("the output file name is empty or has a NUL in it", "write for example: --output train-%j.out")
    expand(pattern, job_id=1, array_id=None, array_index=None, name="job", user="user", restart=0)


def _as_file_name(text: str) -> str:
    """A name without slashes and controls and not beginning with a dot: it can lead to no other directory."""
    safe = "".join("_" if ch == "/" or ch < " " or ch == "\x7f" else ch for ch in text)
    return "_" + safe[1:] if safe.startswith(".") else safe
