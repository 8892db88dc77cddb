"""Real attempts for tests: a place with a launcher whose jobs are all gone at the end, and waiting on conditions."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpusched.launch.doorbell import Doorbell
from gpusched.launch.local import LocalLauncher
from gpusched.model.job import AttemptKey
from gpusched.model.state import Outcome
from gpusched.ports import LaunchOrder

WITHIN = 40.0  # seconds; generous, because the machine may be busy
PATH = "/usr/local/bin:/usr/bin:/bin"
FIRST = AttemptKey(1, 1)
T = TypeVar("T")


async def until(condition: Callable[[], T | None], what: str = "the condition") -> T:
    """Wait until a condition is true and give its value."""
    end = time.monotonic() + WITHIN
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true"
        await asyncio.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """A process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Place:
    """A directory with a launcher, its doorbell and what rang there."""

    root: Path
    launcher: LocalLauncher
    rings: list[AttemptKey] = field(default_factory=list)

    def file(self, name: str) -> Path:
        return self.root / name

    def job_dir(self, key: AttemptKey = FIRST) -> Path:
        return self.root / "jobs" / str(key)

    def control(self, key: AttemptKey = FIRST) -> Path:
        return self.launcher.control(key)

    def order(self, *argv: str, key: AttemptKey = FIRST, **more: Any) -> LaunchOrder:
        usual: dict[str, Any] = {
            "env": {"PATH": PATH, "HERE": str(self.root), "JOB": str(self.job_dir(key))},
            "cwd": str(self.root),
            "output": str(self.root / f"{key}.out"),
            "error": None,
            "job_dir": str(self.job_dir(key)),
        }
        return LaunchOrder(key, argv, **{**usual, **more})

    def output(self, key: AttemptKey = FIRST) -> str:
        with suppress(FileNotFoundError):
            return (self.root / f"{key}.out").read_text()
        return ""

    async def start(self, *argv: str, key: AttemptKey = FIRST, **more: Any) -> AttemptKey:
        await self.launcher.start(self.order(*argv, key=key, **more))
        return key

    async def shell(self, script: str, key: AttemptKey = FIRST, **more: Any) -> AttemptKey:
        return await self.start("/bin/bash", "-c", script, key=key, **more)

    async def outcome(self, key: AttemptKey = FIRST) -> Outcome:
        """Wait for the end of a started attempt."""
        async with asyncio.timeout(WITHIN):
            await self.launcher.ended(key)
        outcome = self.launcher.observe(key).outcome
        assert outcome is not None, (list(self.control(key).iterdir()), self.trouble(key))
        return outcome

    def trouble(self, key: AttemptKey) -> str:
        log = self.control(key) / "supervisor.log"
        return log.read_text() if log.exists() else ""

    async def pid(self, key: AttemptKey = FIRST) -> int:
        return await until(lambda: self.launcher.observe(key).pid, "the job's exec")


@asynccontextmanager
async def a_place(root: Path) -> AsyncIterator[Place]:
    """A place in which no process is left afterwards, and no supervisor has met an error of its own."""
    place = Place(root, LocalLauncher(root / "control", root / "bell"))
    bell = Doorbell(root / "bell", place.rings.append)
    bell.open()
    try:
        yield place
    finally:
        bell.close()
        await clean_up(place)


async def clean_up(place: Place) -> None:
    keys = place.launcher.attempts()
    for key in keys:
        supervisor = place.launcher.observe(key).supervisor_pid
        if place.launcher.observe(key).alive and supervisor is not None:
            with suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGCONT)
        place.launcher.kill(key)
        async with asyncio.timeout(WITHIN):
            await place.launcher.ended(key)
        await asyncio.to_thread(place.launcher.kill_remains, key)
    await place.launcher.close()
    assert not [place.trouble(key) for key in keys if place.trouble(key)]
