"""How the demo is shown: live on a terminal, as plain lines elsewhere. Knows nothing of the story."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from gpusched.demo.curves import draw
from gpusched.demo.scene import Scene

SHOWN_LINES = 9
CURVE_HEIGHT = 6
LEAST_SPAN = 30.0  # seconds on the curves' time axis


class Screen(Protocol):
    def tell(self, text: str) -> None:
        """One more line of the story."""

    def show(self, scene: Scene) -> None:
        """How things stand now."""


class PlainScreen:
    """For pipes and logs: the story line by line, and the curves once, at the end."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._scene: Scene | None = None

    def tell(self, text: str) -> None:
        print(f"{stamp(time.monotonic() - self._began)}  {text}", flush=True)

    def show(self, scene: Scene) -> None:
        self._scene = scene

    def finish(self) -> None:
        for curve in self._scene.curves if self._scene else ():
            print(f"\n  loss of {curve.title}")
            for line in _drawn(self._scene, curve.points, 66):
                print(f"  {line}")
        print(flush=True)


def stamp(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"


def _drawn(scene: Scene | None, points: list[tuple[float, float]], width: int) -> list[str]:
    assert scene is not None
    top = max((loss for curve in scene.curves for _, loss in curve.points), default=1.0)
    end = max(scene.now, scene.began + LEAST_SPAN)
    return draw(points, width=width, height=CURVE_HEIGHT, begin=scene.began, end=end, top=top)


class LiveScreen:
    """A page that is drawn anew several times a second, with the latest lines of the story below."""

    def __init__(self, live: Any, directory: Path) -> None:
        self._live = live
        self._directory = directory
        self._began = time.monotonic()
        self._lines: deque[str] = deque(maxlen=SHOWN_LINES)
        self._scene: Scene | None = None

    def tell(self, text: str) -> None:
        self._lines.append(f"{stamp(time.monotonic() - self._began)}  {text}")
        if self._scene is not None:
            self.show(self._scene)

    def show(self, scene: Scene) -> None:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        self._scene = scene
        self._live.update(
            Group(
                Panel(Group(*self._devices(scene)), title=scene.title, title_align="left"),
                Panel(self._queue(scene), title="queue", title_align="left"),
                self._curves(scene),
                Panel(Text("\n".join(self._lines)), title="what happened", title_align="left", height=SHOWN_LINES + 2),
            )
        )

    def _devices(self, scene: Scene) -> list[Any]:
        from rich.text import Text

        shown = []
        for device in scene.devices:
            used, total = device["memory_used"] or 0, device["memory_total"]
            who = ", ".join(f"#{job['job']} {job['name']}" for job in device["jobs"]) or "-"
            line = Text(f" GPU {device['index']}  ")
            line.append(bar((device["utilization"] or 0) / 100, 14), style="green")
            line.append(f" {device['utilization'] or 0:3d} %  {used:5d}/{total} MiB  {device['state']:8}", "default")
            line.append(who, style="bold")
            shown.append(line)
        return shown

    def _queue(self, scene: Scene) -> Any:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2), expand=True)
        for heading in ("job", "name", "QoS", "state", "step", "attempt", "why it waits, or where it runs"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for job in scene.jobs:
            progress = job["progress"] or {}
            step = f"{progress.get('step', '-')}/{progress.get('total') or '-'}" if progress else "-"
            place = job["reason_text"] or ", ".join(f"GPU {d['index']}" for d in job["devices"])
            style = {"RUNNING": "green", "PENDING": "yellow", "STOPPING": "magenta", "FAILED": "red"}
            table.add_row(
                f"#{job['job']}", job["name"], job["qos"], job["state"], step, str(job["attempt"]), place,
                style=style.get(job["state"], "default"),
            )
        return table

    def _curves(self, scene: Scene) -> Any:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(expand=True)
        width = max(20, self._live.console.width // max(1, len(scene.curves)) - 5)
        panels = []
        for curve in scene.curves:
            grid.add_column(ratio=1)
            lines = "\n".join(_drawn(scene, curve.points, width))
            last = f"{curve.points[-1][1]:.3f}" if curve.points else "…"
            panels.append(
                Panel(Text(lines, style="cyan"), title=f"loss of {curve.title}: {last}", title_align="left")
            )
        grid.add_row(*panels)
        return grid

    def finish(self) -> None:
        """Leave the whole story on the terminal."""


def bar(share: float, width: int) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "·" * (width - filled)


@contextmanager
def open_screen(directory: Path) -> Iterator[Screen]:
    """The screen that suits standard output."""
    if not sys.stdout.isatty():
        plain = PlainScreen()
        yield plain
        plain.finish()
        return
    from rich.live import Live

    with Live(refresh_per_second=8, transient=False) as live:
        yield LiveScreen(live, directory)
