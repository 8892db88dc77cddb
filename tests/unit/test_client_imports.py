"""Commands must be quick: what they never import. Each runs in a fresh interpreter against a tiny listener."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

FORBIDDEN = {"asyncio", "aiohttp", "pydantic", "torch", "numpy", "rich", "psutil", "apscheduler", "http.client", "ssl"}
ANSWERS = {
    "/v1/status": {"jobs": {"running": 0, "pending": 0}, "devices": {"free": 0, "error": None}, "degraded": None},
    "/v1/jobs": {"jobs": [], "job": "1", "ids": [1], "note": "", "dry_run": False},
    "/v1/jobs/cancel": {"results": []},
    "/v1/devices": {"devices": [], "error": None, "driver": ""},
}
PROBE = """
import json, sys
from gpusched.cli.main import run_command
code = run_command(sys.argv[1:])
json.dump({"code": code, "modules": sorted(sys.modules)}, open("modules.json", "w"))
"""


def answer(listener):
    """Answer requests, one connection after the other, until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline():
                length = 0
                while header := stream.readline().strip():
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                stream.read(length)
                body = json.dumps(ANSWERS[line.split()[1].decode().split("?")[0]]).encode()
                stream.write(b"HTTP/1.1 200 OK\r\nGpusched-Api: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                stream.flush()


@pytest.mark.parametrize("words", [["queue"], ["submit", "-g", "1", "true"], ["gpus"], ["cancel", "1"], ["--help"]])
def test_a_command_never_imports_what_makes_it_slow(tmp_path, words):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        environment = {**os.environ, "GPUSCHED_SOCKET": str(tmp_path / "s")}
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=60
        )
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "modules.json").read_text())
    assert told["code"] == 0, done.stderr
    assert FORBIDDEN.isdisjoint(told["modules"])
    assert not [name for name in told["modules"] if name.startswith("gpusched.daemon")]


def test_the_probe_would_see_a_forbidden_module(tmp_path):
    probe = PROBE.replace("import json", "import asyncio, json")
    subprocess.run([sys.executable, "-c", probe, "--help"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert not FORBIDDEN.isdisjoint(json.loads((tmp_path / "modules.json").read_text())["modules"])
