"""How the demo is shown: live on a terminal, as plain lines elsewhere. Knows nothing of the story."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from gpusched.demo.scene import Scene, Verdict

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WIDTH, LEAST_HEIGHT = 60, 20  # smaller terminals get plain lines
END_CURVES = 6  # lines


class Screen(Protocol):
    def tell(self, text: str, kind: str = "") -> None:
        """One more line of the story; `kind` chooses its colour."""

    def show(self, scene: Scene) -> None:
        """How things stand now."""

    def conclude(self, verdict: Verdict) -> None:
        """What came out. Shown at the very end."""


class PlainScreen:
    """For pipes, logs and small terminals: the story line by line, and the curves once, at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._scene: Scene | None = None

    def tell(self, text: str, kind: str = "") -> None:
        from gpusched.demo.picture import story_line

        self._console.print(story_line(time.monotonic() - self._began, text, kind), soft_wrap=True)
        sys.stdout.flush()

    def show(self, scene: Scene) -> None:
        self._scene = scene

    def conclude(self, verdict: Verdict) -> None:
        if self._scene is not None:
            print_end(self._console, self._scene, verdict)


def print_end(console: Console, scene: Scene, verdict: Verdict) -> None:
    """The curves and what came out: what stays on the terminal, to be read in five seconds."""
    from rich.text import Text

    from gpusched.demo.picture import curve_table

    console.print()
    if _draws(console):
        console.print(curve_table(scene, min(console.width, 120), END_CURVES))
        console.print()
    for name, text in verdict.lines:
        console.print(Text(f"{name:8}", style="bold").append(text, style="not bold"), soft_wrap=True)
    mark = ("✓ " if verdict.same else "✗ ") if _draws(console) else ""
    console.print(Text(f"{mark}{verdict.text}", style="bold green" if verdict.same else "bold red"), soft_wrap=True)


def _draws(console: Console) -> bool:
    """Whether the output can take more than ASCII."""
    try:
        "⠀─█✓".encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


@contextmanager
def open_screen(*, color: bool = True) -> Iterator[Screen]:
    """The screen that suits standard output."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    console = Console(
        file=sys.stdout, highlight=False, force_terminal=tty, no_color=not color, width=None if tty else 100
    )
    large = console.width >= LEAST_WIDTH and console.height >= LEAST_HEIGHT
    if not tty or not large or os.environ.get("TERM", "dumb") == "dumb" or not _draws(console):
        yield PlainScreen(console)
        return
    from gpusched.demo.live import LiveScreen

    with LiveScreen(console) as live:
        yield live
