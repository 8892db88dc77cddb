"""Real processes for tests of devices: they hold memory, burn CPU, or change their environment by exec."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

PATIENCE = 30.0  # seconds; the machine may be loaded

_HOLD = "import sys, time\nheld = b'x' * (int(sys.argv[1]) << 20)\nprint('ready', flush=True)\n"
_SLEEP, _BURN = "time.sleep(600)\n", "while True: pass\n"


class Processes:
    """Starts processes and ends each one it started."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen] = []

    def start(self, argv: list[str], **env: str) -> subprocess.Popen:
        """Start and wait for the first line of its output."""
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | env
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        assert process.stdout.readline().startswith("ready")
        return process

    def hold(self, *uuids: str, mib: int = 0, burn: bool = False, **env: str) -> subprocess.Popen:
        """A process on these devices with so much memory."""
        code = _HOLD + (_BURN if burn else _SLEEP)
        if uuids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
        return self.start([sys.executable, "-S", "-c", code, str(mib)], **env)

    def end(self, process: subprocess.Popen) -> None:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def end_all(self) -> None:
        for process in self._started:
            self.end(process)


async def until(ask: Callable[[], Awaitable], good: Callable[..., bool]):
    """Ask again and again until the answer is good; the last answer when patience ends."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = await ask()
        if good(answer) or time.monotonic() > end:
            break
        await asyncio.sleep(0.02)
    assert good(answer), answer
    return answer
