"""Whatever is sent to the socket, the answer is an error of the table and never a 5xx, and the daemon stays well."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import pytest
from daemons import PATIENCE

NASTY: list[Any] = [
    None, True, 0, -1, 1e308, 2**70, "", "x", "\0", "\ud800", "a" * 5000, [], [[]], {}, {"jobs": {}}, {"jobs": []},
    {"jobs": [1]}, {"jobs": ["0"]}, {"jobs": ["1_x"]}, {"jobs": ["٣"]}, {"jobs": ["1"], "x": 1}, {"jobs": ["9" * 19]},
    {"jobs": ["1"], "set": []}, {"jobs": ["1"], "set": {"gpus": -5}}, {"jobs": ["1"], "set": {"gpus": 2**80}},
    {"jobs": ["1"], "set": {"gpus": True}}, {"jobs": ["1"], "set": {"qos": "\0"}}, {"jobs": ["1"], "set": {"name": ""}},
    {"jobs": ["1"], "set": {"begin": 1e400}}, {"jobs": ["1"], "set": {"time_limit": -1}},
    {"jobs": ["1"], "set": {"begin": -1e11}}, {"jobs": ["1"], "set": {"begin": 9e11}},
    {"jobs": ["1"], "set": {"dependency": "afterok:"}}, {"jobs": ["1"], "set": {"dependency": "x" * 4000}},
    {"jobs": ["1"], "set": {"partition": "none"}}, {"jobs": ["1"], "set": {"gpu_mem_mib": 2**62}},
    {"jobs": ["1"], "set": {"gpu_type": "[" * 4000}}, {"jobs": ["1"], "hold": 5}, {"ask_jobs": "maybe", "x": 1},
]  # fmt: skip

SUBMIT: list[dict[str, Any]] = [
    {"command": "sh"}, {"command": [""]}, {"command": [1]}, {"command": ["a\0"]}, {"command": ["\ud800"]},
    {"cwd": "."}, {"cwd": "/\0"}, {"cwd": "/" + "x" * 5000}, {"env": {"": "x"}}, {"env": {"A=B": "x"}},
    {"env": {"A": 1}}, {"env": []},
    {"name": ""}, {"name": "\x1b[2J"}, {"name": "x" * 500}, {"gpus": -1}, {"gpus": 1e3}, {"gpus": True},
    {"gpus": 2**70},
    {"gpu_mem_mib": 0}, {"shared": True}, {"shared": True, "gpu_mem_mib": 100, "gpus": 0}, {"gpu_type": ""},
    {"gpu_type": "[z-a]*\\"}, {"time_limit": 0}, {"time_limit": "1h"}, {"time_limit": 1e300}, {"begin": -1},
    {"begin": 1e300}, {"begin": 2**40}, {"cron": "* * *"}, {"cron": "61 * * * *"}, {"cron": "0 0 31 2 *"},
    {"cron": "\ud800"}, {"dependency": ","}, {"dependency": "afterok:0"}, {"dependency": "afterok:1?afterok:2,after:3"},
    {"dependency": "singleton," * 2000}, {"array": "0-999999999"}, {"array": "5-1"}, {"array": "1-3%0"}, {"array": "١"},
    {"array": "0-" + "9" * 30}, {"output": "%"}, {"output": "%z"}, {"output": "a\0b"}, {"error": "x" * 4096},
    {"output": "/dev/full"}, {"signal": 9}, {"signal": 64}, {"signal": -1}, {"signal": 10**9}, {"umask": 8**5},
    {"umask": -1}, {"checkpoint_dir": "\0"}, {"checkpoint_dir": "/proc/nope"}, {"checkpoint_dir": ""},
    {"comment": "\ud800"}, {"comment": "\0"}, {"account": "\ud800"}, {"source": {"x": 1}}, {"source": []},
    {"qos": "\0"},
    {"partition": "?"}, {"grace": -1}, {"grace": 1e18}, {"warn": 1e18}, {"max_requeues": -1}, {"max_requeues": 2**60},
    {"array": "1-3", "cron": "* * * * *"}, {"begin": 2**39, "cron": "* * * * *"}, {"source": {"script": "\ud800"}},
]  # fmt: skip

GETS = [
    "/v1/jobs?state=X", "/v1/jobs?state=%00", "/v1/jobs?jobs=x", "/v1/jobs?jobs=1,1,1", "/v1/jobs?name=%5B&all=1",
    "/v1/jobs?user=%FF", "/v1/jobs/0", "/v1/jobs/1_", "/v1/jobs/%00", "/v1/jobs/..%2f..",
    "/v1/jobs/99999999999999999999",
    "/v1/jobs/999999999999999999", "/v1/jobs/999999999999999999_999999999/why", "/v1/jobs/1/wait?timeout=nan",
    "/v1/jobs/1/wait?timeout=-5", "/v1/jobs/1/wait?timeout=1e999", "/v1/history?since=x", "/v1/history?limit=-1",
    "/v1/history?limit=1e11", "/v1/history?limit=0.5", "/v1/history?since=-1e11&until=1e11", "/v1/history?name=%00",
    "/v1/history?jobs=1,x", "/v1/history?state=R,CD&user=" + "a," * 3000, "/v1/devices?samples=-1",
    "/v1/devices?samples=9999999", "/v1/devices?samples=%D9%A3", "/v1/status?x=1", "/v1/nothing", "/",
    "/v1/jobs/1/why?x=%",
]  # fmt: skip
POSTS = [
    f"/v1/jobs/{verb}"
    for verb in ("cancel", "hold", "release", "requeue", "preempt", "checkpoint", "resubmit", "update")
] + ["/v1/jobs", "/v1/jobs?dry_run=1"]


def exchange(path: str, raw: bytes, hang_up: bool = False) -> bytes:
    """Send bytes and read whatever comes back until the daemon closes or has answered."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        try:
            connection.sendall(raw)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def ask(place: Any, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = exchange(str(place.state / "gpusched.sock"), head.encode() + b"\r\n" + (body or b""))
    status, _, rest = answer.partition(b"\r\n")
    return int(status.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2] or b"{}")


def good(status: int, answer: dict[str, Any]) -> bool:
    """A success, or an error of the table with a sentence."""
    if status == 200:
        return True
    error = answer.get("error", {})
    return status in (400, 403, 404, 405, 409, 413) and bool(error.get("code")) and bool(error.get("message"))


def test_no_query_makes_the_daemon_stumble(place):
    answers = [(path, *ask(place, "GET", path)) for path in GETS]
    bad = [found for found in answers if not good(*found[1:])]
    assert not bad, bad


@pytest.mark.parametrize("path", POSTS)
def test_no_body_makes_the_daemon_stumble(place, path):
    place.sh("true", gpus=0, hold=True)
    bodies = [json.dumps(body).encode() for body in NASTY]
    bodies += [b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b'{"jobs": 5}', b"9" * 9999]
    answers = [(raw[:60], *ask(place, "POST", path, raw)) for raw in bodies]
    bad = [found for found in answers if not good(*found[1:])]
    assert not bad, bad


def test_an_update_takes_what_a_submit_takes_and_no_more(place):
    key = place.sh("true", gpus=1, hold=True, name="as-it-was", time_limit=60)
    before = place.job(key)
    for changes in (
        {"name": ""}, {"name": "x" * 200}, {"begin": -1}, {"begin": 9e11}, {"time_limit": -1}, {"gpus": -5},
        {"gpus": True}, {"comment": "\0"}, {"gpu_mem_mib": -1}, {"colour": "red"}, {"qos": None},
    ):  # fmt: skip
        status, answer = ask(place, "POST", "/v1/jobs/update", json.dumps({"jobs": [key], "set": changes}).encode())
        assert status == 400 and next(iter(changes)) in answer["error"]["message"], (changes, answer)
    after = place.job(key)
    for name in ("name", "begin_at", "time_limit", "gpus", "comment", "gpu_mem_mib", "qos"):
        assert after[name] == before[name]
    assert place.client.update([key], {"time_limit": 0, "comment": "x" * 1000, "begin": 2e9})[0]["ok"]
    job = place.job(key)
    assert (job["time_limit"], job["begin_at"], len(job["comment"])) == (None, 2e9, 1000)
    place.client.cancel([key])


def test_no_field_of_a_submission_makes_the_daemon_stumble(place):
    bad: list[Any] = []
    for fields in SUBMIT:
        body = {"command": ["true"], "cwd": str(place.work), "env": {}, "gpus": 0, "hold": True, **fields}
        answers = [ask(place, "POST", f"/v1/jobs{query}", json.dumps(body).encode()) for query in ("?dry_run=1", "")]
        bad += [(fields, answer) for answer in answers if not good(*answer)]
        bad += [(fields, *answers)] if answers[0][0] != answers[1][0] else []  # a dry run agrees
    assert not bad, bad
    for job in place.client.jobs():  # what was taken in can be shown, explained and ended
        for path in ("", "/why", "/wait?timeout=0"):
            status, answer = ask(place, "GET", f"/v1/jobs/{job['job']}{path}")
            assert status == 200, (job["job"], answer)
        place.client.release([job["job"]])
    assert place.cli("queue").code == 0


def test_bytes_that_are_no_http_do_not_harm(place):
    chance = random.Random(7)
    path = str(place.state / "gpusched.sock")
    for _ in range(40):
        exchange(path, chance.randbytes(chance.randrange(1, 400)), hang_up=True)
    exchange(path, b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}", hang_up=True)
    exchange(path, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n", hang_up=True)
    exchange(path, b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", hang_up=True)
    assert place.client.status()["degraded"] is None
    assert place.ended(place.sh("true", gpus=0))["state"] == "COMPLETED"
