"""A small HTTP server on a real Unix socket that answers as docs/api.md says, for tests of the client and the CLI.

It records what it was asked; tests put in what it shall answer. And `Terminal`, which runs a command in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from gpusched.cli.main import run_command
from gpusched.rundir import unix_address

NOW = 1_795_000_000.0


def a_job(key: str = "42", **facts: Any) -> dict[str, Any]:
    """A JOB of the API, waiting unless told otherwise."""
    head, _, index = key.partition("_")
    return {
        "job": key, "id": int(head), "array_id": int(head) if index else None,
        "array_index": int(index) if index else None, "array_indices": index or None,
        "array_count": 1 if index else None, "array_limit": None, "name": "train", "user": "alice", "uid": 1000,
        "state": "PENDING", "code": "PD", "reason": "Resources", "reason_text": "needs 4, 1 free", "position": 1,
        "qos": "normal", "partition": "default", "account": "", "gpus": 1, "gpu_mem_mib": None, "shared": False,
        "gpu_type": None, "devices": [], "attempt": 0, "restarts": 0, "submitted_at": NOW, "begin_at": None,
        "started_at": None, "ended_at": None, "elapsed": None, "waited": 12.0, "time_limit": None, "exit_code": None,
        "exit_signal": None, "exit_text": None, "exit_status": None, "command": ["python", "train.py"], "cwd": "/tmp",
        "output": f"/tmp/gpusched-{key}.out", "error_output": None, "job_dir": None, "checkpoint_dir": None,
        "saved": None, "watching": False, "progress": None, "eta": None, "dependency": None, "comment": "",
        "estimated_start": None, "cron": None, "next_run_at": None, "stopping": None, "pid": None, "eligible_at": NOW,
        "gpu_seconds": 0.0, "ran": 0.0, "preemptions": 0, "lost": 0.0, "gpus_max": None, "gpu_counts": [],
        "resizes": 0, "speeds": [],
        **facts,
    }  # fmt: skip


def a_running_job(key: str = "42", **facts: Any) -> dict[str, Any]:
    running = {
        "state": "RUNNING", "code": "R", "reason": None, "reason_text": None, "attempt": 1, "started_at": NOW + 1,
        "elapsed": 62.0, "devices": [{"index": 0, "uuid": "GPU-a", "mem_mib": None}], "pid": 4711,
    }  # fmt: skip
    return a_job(key, **{**running, **facts})


def an_ended_job(key: str = "42", state: str = "COMPLETED", status: int = 0, **facts: Any) -> dict[str, Any]:
    ended = {
        "state": state, "code": state[:2], "devices": [], "ended_at": NOW + 60, "exit_code": status,
        "exit_status": status, "exit_text": f"exit code {status}", "pid": None, "gpu_seconds": 7200.0,
    }  # fmt: skip
    return a_running_job(key, **{**ended, **facts})


def a_device(index: int = 0, **facts: Any) -> dict[str, Any]:
    return {
        "index": index, "uuid": f"GPU-{index}", "name": "NVIDIA H200", "pci_bus_id": f"00000000:1{index}:00.0",
        "memory_total": 143771, "memory_used": 32362, "utilization": 97, "temperature": 52, "power": 350.123,
        "power_limit": 700.0, "health": "ok", "fault": "", "state": "free", "jobs": [], "foreign": [],
        "foreign_mib": 0, "samples": [], **facts,
    }  # fmt: skip


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any


Answerer = Callable[[Asked], "dict[str, Any] | tuple[int, dict[str, Any]]"]


class FakeDaemon:
    """Serves `jobs` and `devices`; `answers` overrides by (method, path)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.api = "1"
        self.asked: list[Asked] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.devices: list[dict[str, Any]] = [a_device(0), a_device(1)]
        self.answers: dict[tuple[str, str], Answerer] = {}
        self.last: list[str] = []
        self.last_lookups = 0
        self._server: socketserver.BaseServer | None = None

    def __enter__(self) -> FakeDaemon:
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                asked = Asked(self.command, unquote(url.path), query, body)
                daemon.asked.append(asked)
                status, value = daemon.answer(asked)
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if daemon.api:
                    self.send_header("Gpusched-Api", daemon.api)
                    self.send_header("Gpusched-Version", "9.9.9")
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that goes away in the middle of an answer

        with unix_address(self.path) as address:
            self._server = Server(address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def answer(self, asked: Asked) -> tuple[int, dict[str, Any]]:
        override = self.answers.get((asked.method, asked.path))
        if override is not None:
            value = override(asked)
            return value if isinstance(value, tuple) else (200, value)
        match asked.method, asked.path.split("/")[2:]:
            case "GET", ["status"]:
                return 200, self._status()
            case "GET", ["jobs"]:
                return 200, {"jobs": list(self.jobs.values())}
            case "GET", ["history"]:
                return 200, {"jobs": list(self.jobs.values())}
            case "GET", ["last"]:
                return 200, {"jobs": self.last}
            case "GET", ["devices"]:
                return 200, {"devices": self.devices, "error": None, "driver": "590.48"}
            case "GET", ["jobs", key, *_] if key in self.jobs:
                return 200, self.jobs[key]
            case "GET", ["jobs", key, *_]:
                return 404, {"error": {"code": "not-found", "message": f"there is no job {key}", "hint": "look"}}
            case "POST", ["jobs"]:
                return 200, {"job": "42", "ids": [42], "note": "starting on device 0", "dry_run": False}
            case "POST", ["jobs", verb]:
                done = [{"job": key, "ok": True, "text": f"{verb} done"} for key in asked.body["jobs"]]
                return 200, {"results": done}
        return 404, {"error": {"code": "not-found", "message": f"no such path {asked.path}", "hint": ""}}

    def _status(self) -> dict[str, Any]:
        return {
            "version": "9.9.9", "api": 1, "pid": os.getpid(), "started_at": NOW, "state_dir": "/state", "uid": 0,
            "user": "root", "devices": {"total": 2, "free": 2, "error": None}, "jobs": {"pending": 5, "running": 3},
            "degraded": None, "probe": "nvml", "qos": ["low", "normal", "high"], "partitions": ["default"],
            "checks": [{"name": "database", "ok": True, "text": "takes writes", "hint": ""}],
        }  # fmt: skip

    def bodies(self, path: str) -> list[Any]:
        """What was posted to a path."""
        return [asked.body for asked in self.asked if asked.method == "POST" and asked.path == path]

    @property
    def submitted(self) -> dict[str, Any]:
        """The body of the one submit."""
        (body,) = self.bodies("/v1/jobs")
        return dict(body)


class Result(NamedTuple):
    code: int
    out: str
    err: str


def gpusched(*arguments: str) -> Result:
    """Run a command in this process, with what it prints."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        code = run_command(arguments)
    finally:
        sys.stdout, sys.stderr = before
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Result(code, *texts)
