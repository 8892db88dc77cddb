"""One process of a run, started as the daemon starts an attempt: directories, variables, a request to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from gpusched import rundir
from gpusched.rehearse import process
from gpusched.rehearse.plan import Plan, Tell

_OTHERS = ("GPUSCHED_", "SLURM_")  # variables of a scheduler around us, which the daemon strips too
_SAY_EVERY = 10.0  # seconds between two lines about a run that goes on


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended. `saved` is its acknowledgement; `killed`: it did not leave in time when asked."""

    number: int
    code: int
    seconds: float
    saved: dict[str, Any] | None
    log: str
    trace: str
    killed: bool = False

    @property
    def stopped(self) -> bool:
        """It saved and left."""
        return self.code == rundir.EXIT_SAVED or (self.saved is not None and self.code != 0)

    def how(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:
            return f"signal {-self.code}"


class Attempts:
    """The attempts of one run, one after the other, in a folder of its own."""

    def __init__(self, plan: Plan, name: str, tell: Tell) -> None:
        self.plan, self.name, self._tell = plan, name, tell
        self.folder = os.path.join(plan.folder, name.replace(" ", "-"))
        self.checkpoints = os.path.join(self.folder, "checkpoints")
        self.ended: list[Ended] = []
        self._mark = f"rehearsal-{os.getpid()}-{os.urandom(6).hex()}"
        os.makedirs(self.checkpoints)

    def run(self, stop_at: int = 0, stop_after: float = 0.0) -> Ended:
        """Start the command and wait for its end. Raises CannotStart.

        stop_at: ask it to stop at this safe point of its process. stop_after: ask it to stop after so many seconds, by
        request, and with SIGTERM if it does not watch for requests.
        """
        number = len(self.ended) + 1
        job_dir = os.path.join(self.folder, "jobs", str(number))
        os.makedirs(job_dir)
        if stop_at:
            _ask(job_dir, None, stop_at)
        log, trace = os.path.join(self.folder, f"output-{number}.log"), os.path.join(self.folder, f"trace-{number}")
        directory = self.plan.directory(self.folder)
        if directory.startswith(self.folder):
            os.makedirs(directory, exist_ok=True)
        starter = self.plan.start or process.start
        began = time.monotonic()
        child = starter(self.plan.words(self.folder), self._environment(number, job_dir, trace), directory, log)
        killed = False
        try:
            killed = self._watch(child, job_dir, began, stop_after)
            process.sweep(self._mark)
        except BaseException:
            with contextlib.suppress(KeyboardInterrupt):
                process.end(child, self._mark, 3.0)
            process.kill_marked(self._mark)
            raise
        seconds = time.monotonic() - began
        ended = Ended(number, child.poll() or 0, seconds, _saved(job_dir, number), log, trace, killed)
        self.ended.append(ended)
        return ended

    def _environment(self, number: int, job_dir: str, trace: str) -> dict[str, str]:
        env = {name: value for name, value in self.plan.environment.items() if not name.startswith(_OTHERS)}
        env[rundir.ENV_JOB_ID] = "1"
        env[rundir.ENV_ATTEMPT] = str(number)
        env[rundir.ENV_JOB_DIR] = job_dir
        env[rundir.ENV_CHECKPOINT_DIR] = self.checkpoints
        env[rundir.ENV_GRACE] = f"{self.plan.grace:g}"
        env[rundir.ENV_TRACE] = trace
        env[rundir.ENV_MARK] = self._mark
        env["GPUSCHED_RESTART_COUNT"] = str(number - 1)
        env["GPUSCHED_JOB_NAME"] = "rehearsal"
        if number > 1:
            env["GPUSCHED_RESUME"] = "1"
        env.setdefault("PYTHONUNBUFFERED", "1")
        return env

    def _watch(self, child: process.Child, job_dir: str, began: float, stop_after: float) -> bool:
        """Until the process has ended. Whether it had to be killed."""
        stop = began + stop_after if stop_after else float("inf")
        kill, say = float("inf"), began + _SAY_EVERY
        while child.poll() is None:
            now = time.monotonic()
            if now >= stop:
                stop, kill = float("inf"), now + self.plan.grace
                _ask(job_dir, self.plan.grace)
                if not os.path.exists(os.path.join(job_dir, rundir.WATCHING)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGTERM)
            if now >= kill:
                process.end(child, self._mark, 0.0)
                return True
            if now >= say:
                say = now + _SAY_EVERY
                self._tell(f"{self.name}: {now - began:.0f} s{_progress(job_dir)}")
            time.sleep(process.PAUSE)
        return False


def _ask(job_dir: str, seconds: float | None, safe_point: int = 0) -> None:
    request: dict[str, Any] = {"ask": "stop", "seq": 1, "cause": "a rehearsal", "deadline": None}
    if seconds is not None:
        request.update(seconds_left=seconds, deadline=time.clock_gettime(time.CLOCK_BOOTTIME) + seconds)
    if safe_point:
        request["safe_point"] = safe_point
    rundir.write_json(os.path.join(job_dir, rundir.REQUEST), request, durable=False)


def _saved(job_dir: str, number: int) -> dict[str, Any] | None:
    """The acknowledgement of this very attempt."""
    value = rundir.read_json(os.path.join(job_dir, rundir.SAVED))
    return value if value is not None and value.get("attempt") in (number, str(number)) else None


def _progress(job_dir: str) -> str:
    lines = rundir.tail_lines(os.path.join(job_dir, rundir.PROGRESS))
    try:
        last = json.loads(lines[-1])
        of = f" of {last['total']}" if last.get("total") else ""
        return f", step {last['step']}{of}"
    except (IndexError, ValueError, TypeError, KeyError):
        return ""


def tail(path: str, lines: int = 15) -> list[str]:
    """The end of an output file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 16384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
