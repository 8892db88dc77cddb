"""The live page: drawn anew several times a second, as high and as wide as the terminal is at that moment."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from gpusched.demo.picture import clock, curve_table, device_lines, heading, queue_lines, story_line
from gpusched.demo.scene import Scene, Verdict
from gpusched.demo.screen import print_end

LEAST_STORY = 5  # lines
CURVE_HEIGHTS = (4, 12)


class LiveScreen:
    """Fills the terminal's other screen, so that nothing of it is left; the story itself is printed at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lines: list[Text] = []
        self._scene: Scene | None = None
        self._verdict: Verdict | None = None
        self._live = Live(self, console=console, screen=True, refresh_per_second=8)

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        for line in self._lines:
            self._console.print(line, soft_wrap=True)
        if self._scene is not None and self._verdict is not None:
            print_end(self._console, self._scene, self._verdict)

    def tell(self, text: str, kind: str = "") -> None:
        self._lines.append(story_line(time.monotonic() - self._began, text, kind))

    def show(self, scene: Scene) -> None:
        self._scene = scene

    def conclude(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        title = Text(self._scene.title if self._scene else "gpusched demo", style="bold", no_wrap=True)
        title.append(f"{clock(time.monotonic() - self._began)}".rjust(max(6, width - len(title) - 1)))
        parts: list[Any] = [title]
        if self._scene is not None:
            devices, queue = device_lines(self._scene, max(3, height - 20)), queue_lines(self._scene)
            # The rest is shared by the curves and the story: headings 3, title 1, names of the curves 1.
            room = height - len(devices) - len(queue) - 5
            curve = min(CURVE_HEIGHTS[1], max(CURVE_HEIGHTS[0], (room - LEAST_STORY) * 2 // 3))
            parts += [*devices, heading("queue", width), *queue, heading("loss", width)]
            parts += [curve_table(self._scene, width, curve), heading("what happened", width)]
            parts += self._lines[-max(1, room - curve) :]
        else:
            parts += self._lines
        yield Group(*parts)
