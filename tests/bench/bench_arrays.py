"""What an array costs before its elements start, and for each that starts: engine and durable store, no processes.

    python tests/bench/bench_arrays.py [ELEMENTS …]         (default: 10000 100000 1000000)

For each size a fresh process, so that memory is its own. Eight devices; behind the array waits another one of the same
size (afterok). Figures are of one run on this machine. To compare with an earlier version, run this file with the
PYTHONPATH of a checkout of it.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from things import PEOPLE, spec

from gpusched.engine.engine import Engine
from gpusched.model.clock import Instant
from gpusched.model.device import DeviceReading, Occupancy
from gpusched.model.events import AttemptExited, AttemptStarted, CancelRequested, DevicesSampled, JobSubmitted
from gpusched.model.job import AttemptKey
from gpusched.model.rules import Rules
from gpusched.model.state import Outcome, OutcomeKind
from gpusched.store.sqlite import SqliteStore

DEVICES, TURNS = 8, 200
NOW = Instant(1_000_000.0, 1_000.0)


class Shell:
    """Handles and commits, as the daemon does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.sqlite"
        self.store = SqliteStore(self.path, ballast_bytes=0)
        self.engine = self._engine()
        self.handled = self.committed = 0.0  # seconds of the last step

    def _engine(self) -> Engine:
        made = Engine(Rules(max_array=10**9), "boot")
        readings = [DeviceReading(f"GPU-{i}", i, "NVIDIA H100 80GB HBM3", 81_920, 0) for i in range(DEVICES)]
        made.handle([DevicesSampled(tuple(Occupancy(reading) for reading in readings))], NOW)
        return made

    def step(self, *events: object) -> None:
        begin = time.perf_counter()
        done = self.engine.handle(events, NOW)  # type: ignore[arg-type]
        between = time.perf_counter()
        self.store.commit([done.changes])
        self.handled, self.committed = between - begin, time.perf_counter() - between

    def size(self) -> int:
        """Bytes of the database with its log."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(os.stat(file).st_size for file in files if file.exists())

    def turn(self) -> None:
        """One running job ends, the next one starts."""
        attempt = min(self.engine.view.live.values(), key=lambda attempt: attempt.key)
        key = AttemptKey(attempt.job_id, attempt.number)
        self.step(AttemptStarted(key, 1), AttemptExited(key, Outcome(OutcomeKind.EXITED, code=0), attempt.uuids))

    def restart(self) -> float:
        self.store.close()
        begin = time.perf_counter()
        self.store = SqliteStore(self.path, ballast_bytes=0)
        self.engine = self._engine()
        self.engine.restore(self.store.load(), NOW)
        return time.perf_counter() - begin


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(Path(folder))
        shell.step(JobSubmitted(spec(), PEOPLE["ann"]))
        empty, bytes_empty = memory_mib(), shell.size()

        def row(what: str, figure: str) -> None:
            print(f"{count:>9,}  {what:<58} {figure:>12}", flush=True)

        def told(what: str, act: Callable[[], None]) -> None:
            act()
            row(f"{what}: engine, and commit", f"{shell.handled * 1000:.1f} ms")
            row("", f"{shell.committed * 1000:.1f} ms")

        text = f"0-{count - 1}"
        told("submit", lambda: shell.step(JobSubmitted(spec(), PEOPLE["ann"], array=text)))
        row("  written", f"{(shell.size() - bytes_empty) / 1024:,.0f} KiB")
        behind = JobSubmitted(spec(after="afterok:2"), PEOPLE["ann"], array=text)
        told("submit of an array that waits for it", lambda: shell.step(behind))
        row("memory for both", f"{memory_mib() - empty:.0f} MiB")
        taken = []
        for _ in range(TURNS):
            shell.turn()
            taken.append((shell.handled, shell.committed))
        median = statistics.median(t[0] for t in taken)
        row("end of an element and start of the next: engine", f"{median * 1000:.2f} ms")
        row("  commit", f"{statistics.median(t[1] for t in taken) * 1000:.2f} ms")
        row("restart of the daemon: reading and restoring", f"{shell.restart() * 1000:.0f} ms")
        told("cancel the array, and so the one behind it", lambda: shell.step(CancelRequested(("2",), PEOPLE["ann"])))
        shell.store.close()


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        one(int(sys.argv[2]))
        return
    for count in sys.argv[1:] or ("10000", "100000", "1000000"):
        subprocess.run([sys.executable, __file__, "--one", count], check=True)


if __name__ == "__main__":
    main()
