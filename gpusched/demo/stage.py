"""The demo's private world: a directory, a daemon in it, and nothing left of either at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gpusched.client import Client
from gpusched.model.errors import GpuschedError, Refused, Unavailable

T = TypeVar("T")
START_DEADLINE = 30.0  # seconds
DEATH_DEADLINE = 5.0
END_DEADLINE = 15.0
REAL_DEVICES = 2  # the demo takes no more of a real machine


class Stage:
    """`with Stage(...) as stage:` has a daemon with devices; leaving it ends jobs and daemon and removes the files."""

    def __init__(self, *, devices: str | None, keep: bool) -> None:
        """devices: a simulation such as sim:2x24G; None: the machine's own."""
        self._devices = devices
        self._keep = keep
        self._daemon: subprocess.Popen[bytes] | None = None
        self.takeovers = 0  # how often the daemon was found dead and started again
        self.directory = Path(tempfile.mkdtemp(prefix="gpusched-demo-"))
        self.state = self.directory / "state"
        self.client = Client(str(self.state / "gpusched.sock"), timeout=30.0)

    def __enter__(self) -> Stage:
        try:
            self._start([])
            if self._devices is None:
                self._take_some_real_devices()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            print("interrupted: ending the demo's jobs and its daemon …", file=sys.stderr, flush=True)
        self._clean_up()

    @property
    def kind(self) -> str:
        return "real" if self._devices is None else "simulated"

    # ---- for the story --------------------------------------------------------------------------------------

    def ask(self, question: Callable[[Client], T]) -> T:
        """Ask the daemon. If it has died, start another one: the jobs have not noticed."""
        try:
            return question(self.client)
        except Unavailable:
            if not self._has_died():
                raise
            self.takeovers += 1
            self._start(self._arguments)
            return question(self.client)

    def _has_died(self) -> bool:
        """Nobody listens where the daemon did: it is about to be gone, a moment after its socket."""
        try:
            return self._daemon is None or self._daemon.wait(DEATH_DEADLINE) is not None
        except subprocess.TimeoutExpired:
            return False

    def submit(self, name: str, qos: str, command: list[str]) -> str:
        """Submit a one-GPU job with the demo's environment. Returns its key."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        body: dict[str, Any] = {
            "command": command, "cwd": str(self.directory), "env": env, "name": name, "qos": qos, "gpus": 1,
            "output": f"{name}.out", "grace": 30.0,
        }
        return str(self.ask(lambda client: client.submit(body))["job"])

    def device_count(self) -> int:
        return len([d for d in self.ask(lambda client: client.devices())["devices"] if d["state"] == "free"])

    # ---- the daemon -----------------------------------------------------------------------------------------

    def _start(self, arguments: list[str]) -> None:
        self._arguments = arguments
        command = [sys.executable, "-P", "-m", "gpusched.daemon", "--state-dir", str(self.state), *arguments]
        if self._devices is not None:
            command += ["--devices", self._devices]
        config = self.directory / "config.toml"
        config.touch()
        with open(self.directory / "daemon.log", "ab") as log:
            self._daemon = subprocess.Popen(
                [*command, "--config", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd="/", start_new_session=True,
            )
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                self.client.status()
                return
            except GpuschedError:
                if self._daemon.poll() is not None or time.monotonic() > deadline:
                    raise Refused("the demo's daemon did not start", self._log_tail()) from None
                time.sleep(0.05)

    def _take_some_real_devices(self) -> None:
        """Keep to the first free devices of the machine, so that others are not in the demo's way, nor it in theirs."""
        free = [d["index"] for d in self.client.devices()["devices"] if d["state"] == "free"][:REAL_DEVICES]
        if not free:
            raise Refused("this machine has no free GPU", "play it on simulated ones: gpusched demo")
        self._end_daemon()
        listed = ", ".join(f'"{index}"' for index in free)
        (self.directory / "config.toml").write_text(f"[partition.default]\ndevices = [{listed}]\n")
        self._start([])

    def _log_tail(self) -> str:
        try:
            return "\n  ".join((self.directory / "daemon.log").read_text().splitlines()[-5:])
        except OSError:
            return "its log is missing"

    def _end_daemon(self) -> None:
        if self._daemon is None:
            return
        self.client.close()
        self._daemon.terminate()
        try:
            self._daemon.wait(END_DEADLINE)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def _clean_up(self) -> None:
        """End everything. An impatient second Ctrl-C must not cut this short and leave a daemon behind."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._end_jobs()
        except GpuschedError:
            pass  # no daemon to ask: it never started, or could not start again
        finally:
            self._end_daemon()
            self._leave_the_directory()
            signal.signal(signal.SIGINT, before)

    def _leave_the_directory(self) -> None:
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        print(
            f"kept: {self.directory}\n  the jobs' output: *.out   their checkpoints: state/checkpoints   "
            "the daemon's log: daemon.log",
            file=sys.stderr,
        )

    def _end_jobs(self) -> None:
        """Cancel what is left (twice: the second kills at once) and wait until nothing runs."""
        deadline = time.monotonic() + END_DEADLINE
        for _ in range(2):
            keys = [job["job"] for job in self.ask(lambda client: client.jobs())]
            if keys:
                self.ask(lambda client, keys=keys: client.cancel(keys))  # type: ignore[misc]
        while self.ask(lambda client: client.jobs()) and time.monotonic() < deadline:
            time.sleep(0.05)
