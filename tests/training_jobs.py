"""The scheduler's side of a training process, for tests: directories, requests, waiting for what it answers."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
PATIENCE = 60.0  # seconds; only ever waited when something is wrong


class Zygote:
    """Client of torch_zygote.py; `modules` are imported once, for all of its children, besides torch."""

    def __init__(self, *modules):
        command = [sys.executable, str(HERE / "torch_zygote.py"), *modules]
        env = {key: value for key, value in os.environ.items() if not key.startswith("GPUSCHED_")}
        env["PYTHONPATH"] = str(REPOSITORY)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._started, self._starting = queue.Queue(), threading.Lock()
        self.codes = {}
        self.ended = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self._process.stdout:
            answer = json.loads(line)
            if "code" not in answer:
                with self.ended:
                    self.codes.pop(answer["pid"], None)  # of an earlier process: the kernel uses numbers again
                self._started.put(answer["pid"])
                continue
            with self.ended:
                self.codes[answer["pid"]] = answer["code"]
                self.ended.notify_all()

    def start(self, argv, env, output):
        order = {"argv": [str(word) for word in argv], "env": env, "output": str(output)}
        with self._starting:  # answers come in the order of the questions
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._started.get(timeout=PATIENCE)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE)
        self._process.stdout.close()


class Job:
    """A job with its checkpoint directory; start() is an attempt with a job directory of its own."""

    def __init__(self, zygote, folder, script, *arguments):
        self.zygote, self.folder, self.command = zygote, Path(folder), [script, *arguments]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = self.folder / "checkpoints"
        self.attempt = 0
        self.pid = None

    @property
    def directory(self):
        return self.folder / f"attempt-{self.attempt}"

    @property
    def output(self):
        path = self.folder / f"output-{self.attempt}"
        return path.read_text() if path.exists() else ""

    def start(self, *arguments, stop_at=None, **env):
        """With `stop_at=n` it is asked to stop at the n-th safe point of this attempt, before it has begun."""
        self.attempt += 1
        self.directory.mkdir()
        if stop_at is not None:
            self.ask("stop", safe_point=stop_at)
        env = dict(
            env,
            GPUSCHED_JOB_ID="1",
            GPUSCHED_ATTEMPT=str(self.attempt),
            GPUSCHED_JOB_DIR=str(self.directory),
            GPUSCHED_CHECKPOINT_DIR=str(self.checkpoints),
        )
        self.pid = self.zygote.start([*self.command, *arguments], env, self.folder / f"output-{self.attempt}")
        return self

    def ask(self, what="stop", seq=1, cause="preempted by job 2", **more):
        temporary = self.directory / "request.new"
        temporary.write_text(json.dumps({"ask": what, "seq": seq, "cause": cause, "deadline": None, **more}))
        temporary.rename(self.directory / "request")

    def wait(self):
        """The exit code of this attempt."""
        with self.zygote.ended:
            done = self.zygote.ended.wait_for(lambda: self.pid in self.zygote.codes, timeout=PATIENCE)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"attempt {self.attempt} did not end; its output:\n{self.output}")
        return self.zygote.codes[self.pid]

    def wait_for(self, name):
        """Until the attempt has made this file in its job directory."""
        self.wait_until((self.directory / name).exists, f"wrote {name}")
        return self.directory / name

    def wait_until(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.pid in self.zygote.codes or time.monotonic() > end:
                raise AssertionError(f"attempt {self.attempt} never {what}; its output:\n{self.output}")
            time.sleep(0.005)

    def saved(self):
        path = self.directory / "saved"
        return json.loads(path.read_text()) if path.exists() else None
