"""Real daemons for tests: one place per state directory, on simulated devices, and nothing left behind at the end."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpusched.client import Client
from gpusched.model.errors import GpuschedError, Unavailable
from gpusched.rundir import ENV_JOB_DIR

HERE = Path(__file__).parent
JOBS = HERE.parent / "jobs"
PATIENCE = 40.0  # seconds; only ever waited when something is wrong
COMMAND = [sys.executable, "-P", "-c", "from gpusched.cli.main import main; main()"]
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "LOST")
T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str | Callable[[], object] = "the condition") -> T:
    """Wait until a condition is true and give its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"did not come true: {what() if callable(what) else what}"
        time.sleep(0.02)
    return value


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of the tests without what a scheduler put there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPUSCHED_", "SLURM_", "CUDA_"))}
    return {**kept, **more}


def alive(pid: int) -> bool:
    """A process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


class Zygote:
    """Client of daemon_zygote.py."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(HERE / "daemon_zygote.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
        )

    def start(self, argv: list[str], env: dict[str, str], log: Path) -> int:
        order = {"argv": argv, "env": env, "log": str(log)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


@dataclass
class Result:
    code: int
    out: str
    err: str


class Place:
    """A state directory with (most of the time) a daemon that works on it."""

    def __init__(self, root: Path, zygote: Zygote, devices: str = "sim:2x8G", config: str = "") -> None:
        self.root, self.devices, self._zygote = root, devices, zygote
        self.state, self.work, self.log = root / "s", root / "w", root / "daemon.log"
        self.work.mkdir(parents=True)
        self.config = root / "config.toml"
        self.config.write_text("sample_interval = 0.2\ncpu_jobs = 8\n" + config)
        self.faults = root / "faults.json"
        self.env = clean_environment(
            HOME=str(root), GPUSCHED_STATE_DIR=str(self.state), GPUSCHED_AUTOSTART="0",
            GPUSCHED_CONFIG=str(self.config), NO_COLOR="1", COLUMNS="200",
        )  # fmt: skip
        self.pid = 0
        self.client = Client(str(self.state / "gpusched.sock"))
        self.spawners: set[int] = set()
        self.expected = ""  # a pattern of log lines that are errors and yet right

    # ---- the daemon ------------------------------------------------------------------------------------------------

    def start(self, failpoints: str = "", wait: bool = True) -> Place:
        argv = ["--state-dir", str(self.state), "--devices", self.devices, "--faults", str(self.faults)]
        env = {**self.env, **({"GPUSCHED_TEST_FAILPOINTS": failpoints} if failpoints else {})}
        self.pid = self._zygote.start([*argv, "--config", str(self.config)], env, self.log)
        if wait:
            until(lambda: self.answers() or not alive(self.pid), self.read_log)
        return self

    def answers(self) -> dict[str, Any] | None:
        try:
            return self.client.status()
        except (Unavailable, FileNotFoundError):
            return None

    def spawner(self) -> int:
        """The pid of the process that forks supervisors; waits until it has named itself."""
        return until(self._note_spawners, "a spawner")[0]

    def _note_spawners(self) -> list[int]:
        found = [pid for pid in children(self.pid) if process_name(pid) == "gpusched-spawn"]
        self.spawners.update(found)
        return found

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        self._note_spawners()
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Until the daemon is gone, by itself or by a failpoint."""
        self._note_spawners()
        # Not `alive`: the first thread of a process can be a zombie while another still holds its files and locks.
        until(lambda: not os.path.exists(f"/proc/{self.pid}"), "the end of the daemon")
        self.client.close()

    def restart(self, failpoints: str = "") -> None:
        self.kill9()
        self.start(failpoints)

    def read_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, *command: str, **fields: Any) -> str:
        """Submit as the command line does, without the price of a process. Gives the job's key."""
        env = fields.pop("env", {})
        body = {"command": list(command), "cwd": str(self.work), "env": {"PATH": os.environ["PATH"], **env}, **fields}
        return str(self.client.submit(body)["job"])

    def sh(self, script: str, **fields: Any) -> str:
        return self.submit("sh", "-c", script, **fields)

    def job(self, key: str) -> dict[str, Any]:
        return self.client.job(key)

    def state_of(self, key: str) -> str:
        return str(self.job(key)["state"])

    def await_state(self, key: str, *states: str) -> dict[str, Any]:
        """Until the job is in one of these states; fails at once if it has ended in another."""

        def there() -> dict[str, Any] | None:
            job = self.job(key)
            assert job["state"] in states or job["state"] not in FINAL, (job["exit_text"], self.story(key))
            return job if job["state"] in states else None

        return until(there, lambda: (self.story(key), self.client.why(key)))

    def running(self, key: str) -> dict[str, Any]:
        return self.await_state(key, "RUNNING")

    def ended(self, key: str) -> dict[str, Any]:
        """The job as it is after its end."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            job = self.client.wait(key, 5.0)
            if job["state"] in FINAL:
                return self.job(key)
        raise AssertionError((f"job {key} does not end", self.story(key), self.client.why(key)))

    def story(self, key: str) -> list[str]:
        return [f"{line['attempt']} {line['kind']}: {line['text']}" for line in self.job(key)["story"]]

    def output(self, key: str) -> str:
        path = Path(self.job(key)["output"])
        return path.read_text() if path.exists() else ""

    def supervisor(self, key: str) -> int:
        """The pid of the supervisor of the job's present attempt."""
        claim = self.state / "attempts" / f"{key}-{self.job(key)['attempt']}" / "attempt.json"
        return int(json.loads(claim.read_text())["supervisor"])

    # ---- the command line ------------------------------------------------------------------------------------------

    def cli(self, *words: str, cwd: Path | None = None, input: str = "", **env: str) -> Result:
        """Run a gpusched command to its end."""
        done = subprocess.run(
            [*COMMAND, *words], cwd=cwd or self.work, env={**self.env, **env}, input=input, capture_output=True,
            text=True, timeout=PATIENCE,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what runs, end the daemon, and fail if any process is left or the daemon has met an error."""
        try:
            if not alive(self.pid):
                self.start()
            self._cancel_all()
            self.stop()
            until(lambda: not self.processes(), lambda: f"processes left behind: {self.processes()}")
        finally:
            self.client.close()
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        errors = [line for line in self.read_log().splitlines() if re.search("ERROR|Traceback|CRITICAL", line)]
        unexpected = [line for line in errors if not self.expected or not re.search(self.expected, line)]
        assert not unexpected, self.read_log()
        logs = [log.read_text() for log in self.state.glob("attempts/*/supervisor.log")]
        assert not logs, logs

    def _cancel_all(self) -> None:
        jobs = self.client.jobs()
        if jobs:
            self.client.cancel([job["job"] for job in jobs])
        for key in (job["job"] for job in jobs if (job["array_count"] or 1) == 1):  # the others have ended
            if self.state_of(key) not in FINAL:
                with suppress(ProcessLookupError, FileNotFoundError, GpuschedError):
                    self.client.update([key], {"comment": "end of the test"})
            self.ended(key)

    def processes(self) -> dict[int, str]:
        """Jobs' processes, supervisors, spawners and daemons of this place that live."""
        mark = f"\0{ENV_JOB_DIR}={self.state}/".encode()
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if mark in environment and alive(pid):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for claim in self.state.glob("attempts/*/attempt.json"):
            with suppress(OSError, ValueError, KeyError):
                pid = int(json.loads(claim.read_text())["supervisor"])
                if process_name(pid).startswith("gpusched ") and alive(pid):
                    found[pid] = f"supervisor {claim.parent.name}"
        found |= {pid: "spawner" for pid in self.spawners if process_name(pid) == "gpusched-spawn"}
        return found


@contextmanager
def a_zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    try:
        yield zygote
    finally:
        zygote.close()


@contextmanager
def a_daemon(root: Path, zygote: Zygote, **options: Any) -> Iterator[Place]:
    """A place with a running daemon; what it leaves behind is an error, its files are removed."""
    place = Place(root, zygote, **options)
    try:
        place.start()
        yield place
    finally:
        place.close()
    shutil.rmtree(root, ignore_errors=True)


def read_until(stream: Any, text: str) -> str:
    """Read a pipe until it has said this."""
    said = ""
    end = time.monotonic() + PATIENCE
    while text not in said:
        assert time.monotonic() < end, said
        if select.select([stream], [], [], 0.5)[0]:
            data = os.read(stream.fileno(), 65536).decode()
            assert data, f"it ended: {said}"
            said += data
    return said
