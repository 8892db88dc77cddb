"""The parts of the demo's picture, for the live page and for the end. Text of rich; knows nothing of the story."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from gpusched.demo.curves import BLANK, draw
from gpusched.demo.scene import Scene

LEAST_SPAN = 20.0  # seconds on the curves' time axis
_STATES = {"RUNNING": "green", "PENDING": "yellow", "STOPPING": "magenta", "STARTING": "cyan", "FAILED": "red"}
_KINDS = {
    "ask": "bold magenta", "submitted": "cyan", "stopping": "magenta", "saved": "magenta", "requeued": "yellow",
    "preempting": "magenta", "failed": "bold red", "lost": "bold red", "killed": "bold red", "completed": "green",
}  # fmt: skip


def heading(text: str, width: int) -> Text:
    """A line across the page with a title in it."""
    return Text(f"── {text} ".ljust(width, "─")[:width], style="blue", no_wrap=True)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"


def story_line(seconds: float, text: str, kind: str) -> Text:
    """One line of the story with the time since the demo began."""
    line = Text(f"{clock(seconds)}  ", style="dim", no_wrap=True, overflow="ellipsis")
    return line.append(text, style=f"not dim {_KINDS.get(kind, 'default')}")


def device_lines(scene: Scene, most: int) -> list[Text]:
    """One line for each device, those with jobs first; what is too much is counted."""
    order = sorted(scene.devices, key=lambda device: (not device["jobs"], device["index"]))
    chosen = order if len(order) <= most else order[: most - 1]
    shown = []
    for device in sorted(chosen, key=lambda device: int(device["index"])):
        busy, used = device["utilization"] or 0, (device["memory_used"] or 0) / 1024
        line = Text(f"GPU {device['index']} ", no_wrap=True, overflow="ellipsis")
        line.append(bar(busy / 100, 12), style="green")
        line.append(f" {busy:3d} %  {used:4.1f}/{(device['memory_total'] or 0) / 1024:.0f} GiB  ")
        line.append(", ".join(f"#{job['job']} {job['name']}" for job in device["jobs"]) or "free", style="bold")
        shown.append(line)
    if len(chosen) < len(order):
        shown.append(Text(f"and {len(order) - len(chosen)} more", style="dim"))
    return shown


def queue_lines(scene: Scene) -> list[Text]:
    """One line for each job: what it is, how far it is, and where it runs or why it waits."""
    shown = []
    for job in scene.jobs:
        told = job["progress"] or {}
        share = float(told.get("step") or 0) / float(told.get("total") or 1e9)
        place = ", ".join(f"on GPU {device['index']}" for device in job["devices"])
        if job["state"] == "PENDING":
            place = job["reason_text"] or "waits"
        elif job["state"] == "RUNNING" and not told:
            place += ", loading PyTorch"
        elif job["ended_at"]:
            place = job["exit_text"] or ""
        attempt = f"attempt {job['attempt']}, " if job["attempt"] > 1 and not job["ended_at"] else ""
        color = _STATES.get(job["state"], "default")
        line = Text(f"#{job['job']} {job['name']:7}{job['qos']:5} ", no_wrap=True, overflow="ellipsis")
        line.append(f"{job['state']:10}", style=color)
        line.append(bar(share, 12), style=color)
        line.append(f" {round(share * 100):3d} %  {attempt}{place}")
        shown.append(line)
    return shown


def curve_table(scene: Scene, width: int, height: int) -> Any:
    """The curves side by side on one time axis, with the pauses of a preempted job marked."""
    table = Table.grid(padding=(0, 2, 0, 0))
    each = max(10, (width - 2 * len(scene.curves)) // max(1, len(scene.curves)))
    points = [point for curve in scene.curves for point in curve.points]
    begin = min((at for at, _ in points), default=scene.now)
    end = max(max((at for at, _ in points), default=scene.now), begin + LEAST_SPAN)
    if any(pause.end is None for curve in scene.curves for pause in curve.pauses):
        end = max(end, scene.now)  # nothing is reported during a pause, and yet time goes on
    top = max((loss for _, loss in points), default=1.0)
    drawn = []
    for curve in scene.curves:
        table.add_column(width=each, no_wrap=True)
        rows = draw(curve.points, curve.pauses, width=each, height=height, begin=begin, end=end, top=top)
        text = Text("\n".join(rows), style="cyan")
        text.highlight_regex(f"[^{BLANK}-\u28ff\n]+", "bold magenta")
        drawn.append(text)
    last = (f"{curve.points[-1][1]:.3f}" if curve.points else "none yet" for curve in scene.curves)
    titles = (f"{curve.title}: {loss}" for curve, loss in zip(scene.curves, last, strict=True))
    table.add_row(*(Text(title, style="bold") for title in titles))
    table.add_row(*drawn)
    return table


def bar(share: float, width: int) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "·" * (width - filled)
