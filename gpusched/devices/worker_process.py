"""One NVML worker process: start it, ask it, kill it. Knows nothing of devices, back-off or what was known before.

It is exec'd afresh (never forked after an NVML init), in a session of its own (a Ctrl-C at `daemon run` is not for it),
from `/` and with a small fixed environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

_LONGEST_LINE = 8 << 20
# LD_LIBRARY_PATH: some clusters and containers have the driver's library nowhere else. PYTHONPATH: only as far as this
# interpreter itself obeyed it; an isolated (root) daemon hands on neither.
_INHERITED = ("LD_LIBRARY_PATH", "PYTHONPATH")


class WorkerEnded(Exception):
    """The process is gone. The text says how it ended; `planned` when it left in good order."""

    def __init__(self, message: str, planned: bool) -> None:
        super().__init__(message)
        self.planned = planned


class WorkerProcess:
    """A running worker. Make it with `spawn`; only one request at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last_words = b""
        self._listener = asyncio.create_task(self._listen())
        self._next_id = 0
        self.hello: dict[str, Any] | None = None
        self.born = asyncio.get_running_loop().time()

    @classmethod
    async def spawn(cls, library: str | None) -> WorkerProcess:
        """Start a worker. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *_command(library),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Has the kernel reaped it? A process stuck inside the driver stays for a while after its SIGKILL."""
        return self._process.returncode is not None

    async def greet(self) -> dict[str, Any]:
        """Wait for its first words: {"driver", "error"}. Raises WorkerEnded; may be cancelled and called again."""
        while self.hello is None:
            self.hello = (await self._line()).get("ready")
        return self.hello

    async def ask(self, request: dict[str, Any], devices: list[dict[str, Any]]) -> dict[str, Any]:
        """Send a request; append each device as it comes; return {"driver", "error"}. Raises WorkerEnded.

        Answers to an earlier request, whose asker gave up waiting, are skipped.
        """
        self._next_id += 1
        number = self._next_id
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            await self._process.stdin.drain()
        except OSError:
            pass  # it is gone or going: reading says how
        while True:
            line = await self._line()
            if line.get("id") != number:
                continue
            if "done" in line:
                done: dict[str, Any] = line["done"]
                return done
            devices.append(line["device"])

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        raw = await self._process.stdout.readline()
        if not raw.endswith(b"\n"):
            code = await self._process.wait()
            await asyncio.wait([self._listener], timeout=1)
            raise WorkerEnded(self._obituary(code), planned=code == 0)
        value = json.loads(raw)
        return value if isinstance(value, dict) else {}

    async def _listen(self) -> None:
        """Keep the end of what it says on stderr, so that its pipe never fills and a crash can be explained."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._last_words = (self._last_words + chunk)[-2000:]

    def _obituary(self, code: int) -> str:
        if code < 0:
            try:
                how = f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was ended by signal {-code}"
        else:
            how = f"ended with code {code}"
        lines = self._last_words.decode(errors="replace").strip().splitlines()
        return f"The NVML worker {how}" + (f" («{lines[-1].strip()[:200]}»)" if lines else "")

    def kill(self) -> None:
        """SIGKILL, without waiting: it may be stuck inside the driver."""
        try:
            self._process.kill()
        except ProcessLookupError:
            pass

    async def close(self, patience: float = 1.0) -> None:
        """Let it end by itself at the end of its stdin, then kill it. Waits no longer than twice `patience` seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        for attempt in (1, 2):
            try:
                await asyncio.wait_for(self._process.wait(), patience)
                break
            except TimeoutError:
                if attempt == 1:
                    self.kill()
        self._listener.cancel()
        await asyncio.wait([self._listener])
        transport = getattr(self._process, "_transport", None)  # a pipe left open warns when the loop is closed
        if transport is not None:
            transport.close()


def _command(library: str | None) -> list[str]:
    flag = "-I" if sys.flags.isolated else "-P"
    command = [sys.executable, flag, "-m", "gpusched.devices.nvml_worker"]
    return command if library is None else [*command, "--library", library]


def _environment() -> dict[str, str]:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    if not sys.flags.isolated:
        environment |= {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return environment
