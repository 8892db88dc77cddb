"""What the benchmarks share: a private daemon on simulated devices, medians, and a table with ratios and aims.

Nothing here is measured. Daemons live in a new directory under $TMPDIR (set it to measure another disk), are ended
by their own process id, and leave nothing behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusched.client import Client
from gpusched.model.errors import Unavailable

PATIENCE = 100.0  # seconds after which a benchmark gives up on whatever it waits for
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Stage:
    """A running daemon with nothing to do."""

    home: Path
    process: subprocess.Popen[bytes]

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def socket(self) -> str:
        return str(self.state / "gpusched.sock")

    @property
    def environment(self) -> dict[str, str]:
        """For commands that are to find this daemon and no other."""
        return {**os.environ, "GPUSCHED_STATE_DIR": str(self.state), "GPUSCHED_SOCKET": self.socket}

    def client(self) -> Client:
        return Client(self.socket)

    def family(self) -> list[int]:
        """The daemon and its helpers: everything below it in the tree but the supervisors and their jobs."""
        children: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := stat_of(int(name))):
                children.setdefault(int(fields[1]), []).append(int(name))
        # The spawner's children are supervisors: they are the jobs' and not the daemon's.
        return [self.process.pid, *children.get(self.process.pid, [])]


def job(*command: str, **more: Any) -> dict[str, Any]:
    """A submission that writes nowhere and carries a small environment."""
    return {"command": list(command), "cwd": "/", "env": ENVIRONMENT, "output": "/dev/null", **more}


@contextmanager
def daemon(devices: str = "sim:2x8G", config: str = "") -> Iterator[Stage]:
    """A daemon that answers and has seen its devices. Ends it, and whatever still runs under it, afterwards."""
    home = Path(tempfile.mkdtemp(prefix="gpusched-bench-"))
    (home / "config.toml").write_text(config)
    command = [sys.executable, "-P", "-m", "gpusched.daemon", "--state-dir", str(home / "state"),
               "--devices", devices, "--config", str(home / "config.toml"), "--log-level", "warning"]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stage = Stage(home, process)
    try:
        wait_until(lambda: _answers(stage), "the daemon answers")
        yield stage
    finally:
        _end(stage)
        if trouble := (home / "log").read_text():
            print(f"the daemon said:\n{trouble}", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)


def _answers(stage: Stage) -> bool:
    if stage.process.poll() is not None:
        raise SystemExit(f"the daemon has ended: {(stage.home / 'log').read_text()}")
    try:
        with stage.client() as client:
            return bool(client.status()["devices"]["total"])
    except Unavailable:
        return False


def _end(stage: Stage) -> None:
    try:
        with stage.client() as client:
            alive = [each["job"] for each in client.jobs(states=["RUNNING", "STARTING"])]
            if alive:
                client.act("hold", [str(each["job"]) for each in client.jobs(states=["PENDING"])] or alive)
                client.act("cancel", alive)
                wait_until(lambda: not client.jobs(states=["RUNNING", "STARTING", "STOPPING"]), "the jobs end")
    except Unavailable:
        pass
    stage.process.terminate()
    stage.process.wait(30)


def wait_until(condition: Any, what: str, pause: float = 0.02) -> None:
    """Poll. Raises TimeoutError after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE:.0f} s in vain until {what}")
        time.sleep(pause)


def stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the state on (index 0); empty if the process is gone."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    return data[data.rfind(b")") + 2 :].split()


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of these processes so far, user and system, children that they have reaped not included."""
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := stat_of(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, which: str) -> float:
    """`Rss` or `Pss` of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. `reached` is None where there is no aim."""

    what: str
    figure: str
    against: str = ""
    ratio: str = ""
    aim: str = ""
    reached: bool | None = None


def table(title: str, lines: Sequence[Line]) -> None:
    """Print figures as a Markdown table, which docs/benchmarks.md can take as it is."""
    head = ("what", "figure", "against", "ratio", "aim", "reached")
    word = {True: "yes", False: "no", None: ""}
    rows = [(x.what, x.figure, x.against, x.ratio, x.aim, word[x.reached]) for x in lines]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"\n{title}")
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)
