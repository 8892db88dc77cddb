"""What the devices did over time under one policy: a row for each device, or of many devices how many were in use.

Below it, how many jobs waited. Draws on what plot.py hands over, and imports matplotlib only inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpusched.simulator.steps import Steps
from gpusched.simulator.workload import Outcome, Span, TraceJob

ROWS = 64  # devices that still get a row of their own
BARS = 20_000  # more are thinner than a line
PARTS = 1200  # of the time, for averages
_SIZES = ((1, "1 device"), (4, "2–4"), (8, "5–8"), (10**9, "9 and more"))
_OTHERS, _QUEUE = "#bbbbbb", "#555555"


class Window(NamedTuple):
    """What all timelines of a picture show: the time, in seconds, how its axis counts, and how many jobs may wait."""

    start: float
    end: float
    unit: float  # seconds
    name: str
    waiting: float


def window_of(outcomes: Sequence[Outcome]) -> Window:
    """From the first submission to the last end of all of them, and as many waiting jobs as there ever were."""
    start = min(fate.job.submit for outcome in outcomes for fate in outcome.fates)
    end = max(fate.ended for outcome in outcomes for fate in outcome.fates)
    length = max(end - start, 1e-6)
    most = max(max(queue(outcome).means(start, start + length, PARTS)) for outcome in outcomes)
    most = max(1.0, most * 1.05)
    for unit, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if length >= 3 * unit:
            return Window(start, start + length, unit, name, most)
    return Window(start, start + length, 1.0, "seconds", most)


def draw(part: Any, outcome: Outcome, window: Window, colors: Sequence[str]) -> None:
    """Two axes in this part of a figure: the devices, and below them the jobs that wait."""
    above, below = part.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    use, waiting = busy(outcome), queue(outcome)
    used = use.mean(window.start, max(fate.ended for fate in outcome.fates)) / outcome.fleet.devices
    above.set_title(f"{outcome.policy}: devices in use {used:.0%} of the time to its last end", loc="left", fontsize=10)
    if outcome.fleet.devices <= ROWS and len(outcome.spans) <= BARS:
        _rows(above, outcome, window, colors)
    else:
        _band(above, use, outcome.fleet.devices, window, colors[0])
        above.set_ylabel("devices in use")
    _band(below, waiting, window.waiting, window, _QUEUE)
    below.set_ylabel("waiting\njobs")
    below.set_xlabel(f"{window.name} since the first submission")
    above.set_xlim(0, (window.end - window.start) / window.unit)


def busy(outcome: Outcome) -> Steps:
    """How many devices were held by at least one attempt; shared ones count once."""
    rows: dict[int, list[Span]] = {}
    for span in outcome.spans:
        rows.setdefault(span.device, []).append(span)
    return Steps(change for spans in rows.values() for change in _union(spans))


def queue(outcome: Outcome) -> Steps:
    """How many jobs had been submitted, had not ended, and held no device. A gang counts once."""

    def changes() -> Iterator[tuple[float, float]]:
        for fate in outcome.fates:
            yield fate.job.submit, 1.0
            yield fate.ended, -1.0
        for _, start, end in {(span.job, span.start, span.end) for span in outcome.spans}:
            yield start, -1.0
            yield end, 1.0

    return Steps(changes())


def _union(spans: list[Span]) -> Iterator[tuple[float, float]]:
    """Changes of 0 or 1 for one device, however many spans lie over each other."""
    spans.sort(key=lambda span: span.start)
    start, end = spans[0].start, spans[0].end
    for span in spans[1:]:
        if span.start > end:
            yield from ((start, 1.0), (end, -1.0))
            start, end = span.start, span.end
        end = max(end, span.end)
    yield from ((start, 1.0), (end, -1.0))


def _band(axes: Any, steps: Steps, most: float, window: Window, color: str) -> None:
    """An area of averages over time, on an axis up to `most`."""
    levels = steps.means(window.start, window.end, PARTS)
    length = (window.end - window.start) / window.unit
    axes.fill_between([length * (part + 0.5) / PARTS for part in range(PARTS)], levels, color=color, linewidth=0)
    axes.set_ylim(0, most)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _rows(axes: Any, outcome: Outcome, window: Window, colors: Sequence[str]) -> None:
    """A bar for each span, in the row of its device, coloured by user or else by the size of the gang."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    jobs = {fate.job.id: fate.job for fate in outcome.fates}
    color_of, legend = _coloring(outcome, jobs, colors)
    edge = 0.25 if len(outcome.spans) < 2000 else 0.0
    axes.add_collection(
        PolyCollection(
            [_bar(span, window) for span in outcome.spans],
            facecolors=[color_of(jobs[span.job]) for span in outcome.spans],
            edgecolors="white" if edge else "face",
            linewidths=edge,
        )
    )
    fleet = outcome.fleet
    axes.set_ylim(fleet.devices - 0.5, -0.5)  # device 0 on top, as in every list
    if fleet.nodes > 1:
        axes.set_yticks(
            [node * fleet.per_node + (fleet.per_node - 1) / 2 for node in range(fleet.nodes)],
            [f"node {node}" for node in range(fleet.nodes)],
        )
        for node in range(1, fleet.nodes):
            axes.axhline(node * fleet.per_node - 0.5, color="#555555", linewidth=0.5)
    else:
        step = max(1, fleet.devices // 8)
        axes.set_yticks(range(0, fleet.devices, step))
        axes.set_ylabel("device")
    axes.legend(
        [Patch(color=color) for color in legend.values()], list(legend), loc="upper left", bbox_to_anchor=(1.0, 1.0),
        fontsize=8, frameon=False,
    )  # fmt: skip


def _bar(span: Span, window: Window) -> list[tuple[float, float]]:
    left, right = ((time - window.start) / window.unit for time in (span.start, span.end))
    top, bottom = span.device - 0.45, span.device + 0.45
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _coloring(outcome: Outcome, jobs: dict[str, TraceJob], colors: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """What colours a job, and what the colours mean: its user (those with the most time), else the size of its gang."""
    held: dict[str, float] = {}
    for span in outcome.spans:
        user = _who(jobs[span.job])
        held[user] = held.get(user, 0.0) + span.end - span.start
    if len(held) > 1:
        first = sorted(held, key=lambda user: (-held[user], user))[: len(colors) - 1]
        legend = dict(zip((user or "nobody" for user in first), colors, strict=False))
        known = dict(zip(first, colors, strict=False))
        if len(held) > len(first):
            legend["others"] = _OTHERS
        return (lambda job: known.get(_who(job), _OTHERS)), legend
    by_size = dict(zip((most for most, _ in _SIZES), colors, strict=False))
    present = {_size(job) for job in jobs.values()}
    legend = {text: by_size[most] for most, text in _SIZES if most in present}
    return (lambda job: by_size[_size(job)]), legend


def _who(job: TraceJob) -> str:
    return job.account or job.user


def _size(job: TraceJob) -> int:
    return next(most for most, _ in _SIZES if job.gpus <= most)
