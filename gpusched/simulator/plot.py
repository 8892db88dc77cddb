"""The picture of `gpusched simulate --plot`: how long jobs took under each policy, and what each device did when.

Needs matplotlib (the extra `plot`), which is imported only when a picture is asked for, and only to write files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpusched.model.units import format_duration
from gpusched.simulator import timeline
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.report import completion_curve
from gpusched.simulator.workload import Outcome

FORMATS = (".png", ".svg", ".pdf")
POINTS = 2000  # of a curve: more cannot be seen
# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
_LINES = ("-", "--", "-.", ":")
_TICKS = {
    1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 6 * 3600: "6 h", 86400: "1 d", 7 * 86400: "1 w",
    30 * 86400: "30 d", 365 * 86400: "1 y",
}  # fmt: skip


def check_can_draw(path: str | Path) -> None:
    """Before a long run: whether a picture could be written there. Raises SimulationError that says what to do."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise SimulationError(f"--plot {path}: the name says no kind of picture", f"end it with {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise SimulationError(f"--plot {path}: there is no directory {path.absolute().parent}", "make it first")
    try:
        there = path.exists()
        if there and not path.is_file():
            raise SimulationError(f"--plot {path} cannot be written: it is no file", "choose another name")
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise SimulationError(
            f"--plot {path} cannot be written: {error.strerror or error}", "choose another place"
        ) from None
    _matplotlib()


def draw(path: str | Path, source: str, outcomes: Sequence[Outcome]) -> None:
    """Write the picture of these runs of one workload. Raises SimulationError if it cannot be written."""
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [outcome for outcome in outcomes if outcome.spans]
    figure = Figure(figsize=(11, 4.2 + 2.9 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1 + len(shown), 1, height_ratios=[4.2, *[2.9] * len(shown)], squeeze=False)[:, 0]
    _curves(parts[0].subplots(), outcomes)
    fleet = outcomes[0].fleet
    jobs = max(len(outcome.fates) for outcome in outcomes)
    devices = f"{fleet.nodes} × {fleet.per_node}" if fleet.nodes > 1 else str(fleet.devices)
    parts[0].suptitle(f"{source}: {jobs:,} jobs on {devices} devices", fontsize=13)
    if shown:
        window = timeline.window_of(shown)  # one for all, so that they can be compared by eye
        for part, outcome in zip(parts[1:], shown, strict=True):
            timeline.draw(part, outcome, window, COLORS)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise SimulationError(f"{path} could not be written: {error.strerror or error}", "choose another") from None


def _curves(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """The share of jobs that had ended after so long, one line for each policy."""
    shortest, longest = 60.0, 1.0
    for place, outcome in enumerate(outcomes):
        times, shares = completion_curve(outcome.fates)
        mean = math.fsum(times) / len(times)
        kept = range(0, len(times), max(1, len(times) // POINTS))
        axes.step(
            [max(1.0, times[point]) for point in kept] + [max(1.0, times[-1])],
            [shares[point] for point in kept] + [1.0],
            where="post",
            label=f"{outcome.policy}  (mean {format_duration(mean)})",
            color=COLORS[place % len(COLORS)],
            linestyle=_LINES[(place // len(COLORS) + place) % len(_LINES)],
            linewidth=1.8,
        )
        shortest, longest = max(1.0, min(shortest, times[0])), max(longest, times[-1])
    axes.set_xscale("log")
    axes.set_xlim(shortest * 0.8, longest * 1.2)
    ticks = [second for second in _TICKS if shortest * 0.8 <= second <= longest * 1.2]
    axes.set_xticks(ticks, [_TICKS[second] for second in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.01)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("time from submission to end")
    axes.set_ylabel("jobs that ended within it")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=True, fontsize=9)


def _matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SimulationError(
            "pictures need matplotlib, which is not installed", "pip install 'gpusched[plot]', or take --csv instead"
        ) from None
