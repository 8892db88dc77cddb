"""What `gpusched simulate` shows: progress on long runs, the table of policies, and how fair they were to users."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from gpusched.cli.output import Field, Json, Style, print_json, print_list
from gpusched.cli.settings import say, settings
from gpusched.cli.text import duration, escape

if TYPE_CHECKING:
    from gpusched.simulator.workload import Fleet, Outcome

EVERY = 10.0  # seconds between lines about progress, where nobody sees a terminal
MOST_USERS = 20  # rows of the table for people


def _time(name: str, header: str) -> Field:
    return Field(lambda row: duration(row[name]), header=header, right=True)


def _percent(name: str, header: str) -> Field:
    return Field(lambda row: f"{row[name]:.1%}", header=header, right=True)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


FIELDS: dict[str, Field] = {
    "policy": Field(),
    "jobs": Field(right=True),
    "mean_completion_s": _time("mean_completion_s", "MEAN"),
    "median_completion_s": _time("median_completion_s", "MEDIAN"),
    "p99_completion_s": _time("p99_completion_s", "P99"),
    "mean_wait_s": _time("mean_wait_s", "WAIT"),
    "mean_first_wait_s": _time("mean_first_wait_s", "FIRST"),
    "p99_wait_s": _time("p99_wait_s", "P99WAIT"),
    "makespan_s": _time("makespan_s", "MAKESPAN"),
    "utilization": _percent("utilization", "USED"),
    "preemptions": Field(lambda row: f"{row['preemptions']:,}", header="PREEMPTED", right=True),
    "jobs_preempted": Field(right=True),
    "lost_gpu_s": _time("lost_gpu_s", "LOST"),
    "lost_share": _percent("lost_share", "LOST%"),
    "mean_rho": Field(lambda row: _ratio(row["mean_rho"]), header="RHO", right=True),
    "worst_rho": Field(lambda row: _ratio(row["worst_rho"]), header="WORST", right=True),
    "worst_rho_job": Field(),
    "unfair_share": _percent("unfair_share", "UNFAIR"),
    "unfinished": Field(right=True),
    "events": Field(right=True),
    "cpu_s": Field(lambda row: f"{row['cpu_s']:.1f}", header="CPU", right=True),
}
COLUMNS = (
    "policy", "mean_completion_s", "median_completion_s", "p99_completion_s", "mean_wait_s", "mean_first_wait_s",
    "makespan_s", "utilization", "preemptions", "lost_gpu_s", "worst_rho", "unfair_share",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    source: str
    fleet: Fleet
    outcomes: Sequence[Outcome]
    asked: Json


def show(shown: Shown, csv: bool) -> None:
    """The figures of all policies, as was asked: a table, CSV or JSON. Raises SimulationError for a run without any."""
    from gpusched.simulator.report import report

    rows = [report(outcome).to_json() for outcome in shown.outcomes]
    fleet = shown.fleet
    if settings.json:
        devices = {"nodes": fleet.nodes, "per_node": fleet.per_node, "memory_mib": fleet.memory_mib}
        print_json({"source": shown.source, "devices": devices, "settings": shown.asked, "policies": rows})
        return
    if csv:
        print_list(rows, tuple(FIELDS), FIELDS, Style(csv=True), "policies")
        return
    where = f"{fleet.nodes} × {fleet.per_node} devices" if fleet.nodes > 1 else count(fleet.devices, "device")
    say(f"{escape(shown.source)}: {count(rows[-1]['jobs'], 'job')} on {where}")
    print_list(rows, COLUMNS, FIELDS, Style(), "policies")
    if len(rows[0]["user_rho"]) > 1:
        _show_users(rows)


def _show_users(rows: Sequence[Json]) -> None:
    """Finish-time fairness of each user under each policy; of many users those who are worst off."""
    policies = [row["policy"] for row in rows]
    fields = {"user": Field()} | {policy: _rho_of(policy) for policy in policies}
    users = [
        {"user": user or "-", **{row["policy"]: row["user_rho"].get(user) for row in rows}}
        for user in rows[0]["user_rho"]
    ]
    users.sort(key=lambda row: -max(row[policy] or 0.0 for policy in policies))
    left = len(users) - MOST_USERS
    say("\nfinish-time fairness of users (1: as with an equal share of the devices; more: longer)")
    print_list(users[:MOST_USERS], ("user", *policies), fields, Style(), "users")
    if left > 0:
        say(f"and {count(left, 'user')} who fared better: --json has all")


def _rho_of(policy: str) -> Field:
    return Field(lambda row: _ratio(row[policy]), header=policy.upper(), right=True)


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


class ProgressLine:
    """How far a run is, on standard error: one line that changes on a terminal, elsewhere a line now and then."""

    def __init__(self, policies: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._policies = policies
        self._clock = clock
        self._terminal = sys.stderr.isatty()
        self._began = self._told = clock()
        self._done = 0
        self._running: dict[str, int] = {}  # policies under way, and how many jobs have ended
        self._width = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def done(self, policy: str) -> None:
        """One more policy has been run."""
        self._done += 1
        self._running.pop(policy, None)

    def tell(self, policy: str, finished: int, jobs: int) -> None:
        now = self._clock()
        self._running[policy] = finished
        if now - self._told < (0.1 if self._terminal else EVERY):
            return
        self._told = now
        running = ", ".join(f"{name} {done:,}" for name, done in self._running.items())
        policies = f" ({self._done} of {self._policies} policies done)" if self._policies > 1 else ""
        text = f"{running} of {count(jobs, 'job')} finished{policies}, {duration(now - self._began)}"
        if not self._terminal:
            say(text)
            return
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = max(self._width, len(text))
