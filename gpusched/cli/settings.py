"""What the global options say, for the one command that this process runs. Reset by main() before each command."""

from __future__ import annotations

import os
import sys
from typing import TextIO


class Settings:
    def __init__(self) -> None:
        self.json = False
        self.debug = False
        self.no_color = False
        self.socket = ""  # --socket: this daemon and no other; it is never started from here

    def reset(self) -> None:
        vars(self).update(vars(Settings()))

    def color(self, stream: TextIO) -> bool:
        """Colours only where somebody looks at them. click itself does not know NO_COLOR."""
        if self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return stream.isatty()


settings = Settings()

_COLORS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "dim": 2, "bold": 1}


def paint(text: str, color: str, stream: TextIO | None = None) -> str:
    """The text in a colour, where the stream (default: standard output) shows colours."""
    if not color or not settings.color(stream or sys.stdout):
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def say(text: str) -> None:
    """Tell the person something on standard error, which is never data."""
    print(text, file=sys.stderr, flush=True)
