"""Python client of the API (docs/api.md) over the daemon's Unix socket. Used by the command line, the page and tests.

Standard library only, because every command pays for what is imported here. It starts no daemon and prints nothing;
whatever goes wrong is raised as an error of gpusched/model/errors.py.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from gpusched import __version__
from gpusched.model.errors import GpuschedError, NotAllowed, Unavailable, VersionMismatch, from_json
from gpusched.rundir import unix_address

API = 1  # the protocol this client speaks
_START = "start one with: gpusched daemon start"
_AT_ONCE = 5000  # jobs in one request; the daemon takes 10 000
Json = dict[str, Any]


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process that listens at the other end, as the kernel tells it (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


class _NotHttp(Exception):
    """What came back is no HTTP answer."""


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class _Connection:
    """HTTP/1.1 over a Unix socket, as much of it as the daemon speaks: every answer has a Content-Length.

    Not http.client, which imports email and ssl: 25 ms of processor time in every command, a third of all it takes.
    """

    def __init__(self, path: str, timeout: float) -> None:
        """Connect. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(timeout)
            with unix_address(path) as address:
                self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self.file = self.sock.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def exchange(self, head: str, body: bytes, timeout: float) -> _Answer:
        """Send a request and read the answer. Raises ConnectionError, TimeoutError (seconds), _NotHttp."""
        self.sock.settimeout(timeout)
        try:
            self.sock.sendall(head.encode("ascii") + body)
        except BrokenPipeError:
            pass  # it would not read everything; perhaps it has said why
        status = self._line().split(b" ", 2)
        if not status[0].startswith(b"HTTP/1.") or len(status) < 2 or not status[1].isdigit():
            raise _NotHttp
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > 100:
                raise _NotHttp
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise _NotHttp
        data = self.file.read(int(length))
        if len(data) < int(length):
            raise ConnectionResetError("the answer broke off")
        return _Answer(int(status[1]), headers, data)

    def _line(self) -> bytes:
        line = self.file.readline(65536)
        if not line.endswith(b"\n"):
            if len(line) == 65536:
                raise _NotHttp
            raise ConnectionResetError("the connection was closed")
        return line.rstrip(b"\r\n")


class Client:
    """One connection to one daemon, opened at the first call and kept. Not for use by several threads.

    timeout: seconds to wait for an answer (a `wait` adds its own).
    """

    def __init__(self, socket_path: str, timeout: float = 60.0) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self.daemon_version = ""  # known after the first answer
        self._connection: _Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def open(self) -> None:
        """Connect now. Raises Unavailable if nobody listens."""
        self._connect()

    # ---- the API, one method per line of docs/api.md ----------------------------------------------------------

    def status(self) -> Json:
        return self._get("/v1/status")

    def submit(self, submission: Mapping[str, Any], dry_run: bool = False) -> Json:
        """Submit a job. Raises NotAllowed if the daemon runs as somebody who should not see the environment."""
        self.close()
        self._trust_listener()
        return self._post("/v1/jobs" + ("?dry_run=1" if dry_run else ""), submission, keep=True)

    def jobs(
        self,
        users: Sequence[str] = (),
        states: Sequence[str] = (),
        name: str = "",
        keys: Sequence[str] = (),
        ended: bool = False,
        fields: Sequence[str] = (),
    ) -> list[Json]:
        """Running ones first, then the waiting in scheduling order; with `keys` or `ended` also ended ones.

        fields: the only ones needed, where a long queue should be quick (a daemon may send more).
        """
        query: dict[str, str | Sequence[str]] = {"user": users, "state": states, "name": name, "jobs": keys}
        query["all"] = "1" if ended else ""
        query["fields"] = fields
        return list(self._get("/v1/jobs" + _query(query))["jobs"])

    def job(self, key: str) -> Json:
        """A JOB with story, attempts and spec; of an array `{"array", "elements"}`."""
        return self._get(f"/v1/jobs/{_quote(key)}")

    def why(self, key: str) -> Json:
        return self._get(f"/v1/jobs/{_quote(key)}/why")

    def wait(self, key: str, timeout: float = 30.0) -> Json:
        """The job as soon as it has ended, or as it stands after `timeout` seconds (at most 60)."""
        timeout = min(timeout, 60.0)
        return self._get(f"/v1/jobs/{_quote(key)}/wait" + _query({"timeout": f"{timeout:g}"}), extra=timeout)

    def act(self, verb: str, keys: Sequence[str]) -> list[Json]:
        """cancel, hold, release, requeue, preempt or checkpoint: one result per job."""
        results: list[Json] = []
        for first in range(0, len(keys), _AT_ONCE):
            results += self._post(f"/v1/jobs/{verb}", {"jobs": list(keys[first : first + _AT_ONCE])})["results"]
        return results

    def cancel(self, keys: Sequence[str]) -> list[Json]:
        return self.act("cancel", keys)

    def hold(self, keys: Sequence[str]) -> list[Json]:
        return self.act("hold", keys)

    def release(self, keys: Sequence[str]) -> list[Json]:
        return self.act("release", keys)

    def requeue(self, keys: Sequence[str]) -> list[Json]:
        return self.act("requeue", keys)

    def preempt(self, keys: Sequence[str]) -> list[Json]:
        return self.act("preempt", keys)

    def checkpoint(self, keys: Sequence[str]) -> list[Json]:
        return self.act("checkpoint", keys)

    def resubmit(self, keys: Sequence[str], hold: bool = False) -> list[Json]:
        """The same jobs (or whole arrays) again, with new ids: one result per key, with `new`."""
        return list(self._post("/v1/jobs/resubmit", {"jobs": list(keys), "hold": hold})["results"])

    def update(self, keys: Sequence[str], changes: Mapping[str, Any]) -> list[Json]:
        return list(self._post("/v1/jobs/update", {"jobs": list(keys), "set": dict(changes)})["results"])

    def priorities(self, keys: Sequence[str] = ()) -> Json:
        """The waiting jobs in scheduling order, each with its priority in its factors; `keys`: only these."""
        return self._get("/v1/priorities" + _query({"jobs": keys}))

    def shares(self) -> Json:
        """What accounts have used lately, their shares, and the factor that follows."""
        return self._get("/v1/shares")

    def devices(self, samples: int = 0) -> Json:
        """`{"devices", "error", "driver"}`; `samples`: how many of the last readings to add."""
        return self._get("/v1/devices" + _query({"samples": str(samples) if samples else ""}))

    def limits(self) -> list[Json]:
        """One row for every limit and quota, with what is used of it."""
        return list(self._get("/v1/limits")["limits"])

    def reserve(self, reservation: Mapping[str, Any]) -> Json:
        """Keep devices for some (administrators only): `{"reservation", "text"}`."""
        return self._post("/v1/reservations", reservation)

    def reservations(self, ended: bool = False) -> list[Json]:
        """Those that are active or to come; with `ended` also those that are over."""
        return list(self._get("/v1/reservations" + ("?all=1" if ended else ""))["reservations"])

    def unreserve(self, names: Sequence[str]) -> list[Json]:
        """Take reservations back (administrators only): one result per name."""
        return list(self._post("/v1/reservations/remove", {"names": list(names)})["results"])

    def history(
        self,
        users: Sequence[str] = (),
        states: Sequence[str] = (),
        name: str = "",
        keys: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
    ) -> list[Json]:
        """Ended jobs, the latest end first. Times are seconds since the epoch."""
        numbers = {
            "since": "" if since is None else repr(since),
            "until": "" if until is None else repr(until),
            "limit": "" if limit is None else str(limit),
        }
        query = {"user": users, "state": states, "name": name, "jobs": keys, **numbers}
        return list(self._get("/v1/history" + _query(query))["jobs"])

    def last(self) -> list[str]:
        """Keys of the caller's latest submits, newest first."""
        return list(self._get("/v1/last")["jobs"])

    def stop_daemon(self, ask_jobs: bool = False) -> str:
        return str(self._post("/v1/daemon/stop", {"ask_jobs": ask_jobs})["text"])

    # ---- the wire ---------------------------------------------------------------------------------------------

    def _get(self, path: str, extra: float = 0.0) -> Json:
        kept = self._connection is not None
        try:
            return self._exchange("GET", path, None, extra)
        except ConnectionError:
            if not kept:
                self._lost(asked=False)
        # The daemon closes connections that were idle for long, and it may have been restarted: ask once more.
        try:
            return self._exchange("GET", path, None, extra)
        except ConnectionError:
            self._lost(asked=False)

    def _post(self, path: str, body: Mapping[str, Any], keep: bool = False) -> Json:
        # Never sent twice: an answer that was lost does not mean that nothing was done. A connection that may have
        # been idle for long is therefore not used again.
        if not keep:
            self.close()
        try:
            return self._exchange("POST", path, json.dumps(body).encode(), 0.0)
        except ConnectionError:
            self._lost(asked=True)

    def _connect(self) -> _Connection:
        if self._connection is not None:
            return self._connection
        try:
            self._connection = _Connection(self.socket_path, self.timeout)
        except FileNotFoundError:
            raise Unavailable(f"no daemon at {self.socket_path} (not found)", _START) from None
        except ConnectionRefusedError:
            raise Unavailable(f"no daemon at {self.socket_path} (nobody listens there any more)", _START) from None
        except PermissionError:
            raise NotAllowed(
                f"you may not open the socket {self.socket_path}",
                "ask the administrator to give you access, or use a daemon of your own: GPUSCHED_STATE_DIR=DIRECTORY",
            ) from None
        except OSError as error:
            raise Unavailable(f"no daemon at {self.socket_path} ({error})", "see: gpusched doctor") from None
        return self._connection

    def _trust_listener(self) -> None:
        """Refuse to hand an environment (it may hold tokens) to a listener that is neither root nor ourselves."""
        uid = peer_uid(self._connect().sock)
        if uid not in (0, os.getuid()):
            self.close()
            raise NotAllowed(
                f"the process at {self.socket_path} runs as uid {uid}, neither root nor you: nothing was sent to it",
                "unset GPUSCHED_SOCKET, or ask the administrator what listens there",
            )

    def _exchange(self, method: str, path: str, body: bytes | None, extra: float) -> Json:
        connection = self._connect()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Gpusched-Api: {API}\r\nGpusched-Version: {__version__}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        try:
            answer = connection.exchange(head + "\r\n", body or b"", self.timeout + extra)
        except TimeoutError:
            self.close()
            raise Unavailable(
                f"the daemon at {self.socket_path} did not answer within {self.timeout + extra:g} s",
                "it may be very busy or stuck; see: gpusched doctor",
            ) from None
        except _NotHttp:
            raise self._stranger() from None
        except BaseException:  # Ctrl-C in the middle of an answer: the rest of it must not be taken for the next one
            self.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return self._read(answer)

    def _read(self, answer: _Answer) -> Json:
        spoken = answer.headers.get("gpusched-api")
        self.daemon_version = answer.headers.get("gpusched-version", "")
        if spoken is None:
            raise self._stranger()
        if spoken != str(API):
            raise VersionMismatch(
                f"the daemon is gpusched {self.daemon_version} (protocol {spoken}), "
                f"this command is {__version__} (protocol {API})",
                "restart the daemon: gpusched daemon stop, then gpusched daemon start (running jobs go on)",
            )
        try:
            value = json.loads(answer.body)
        except ValueError:
            raise self._stranger() from None
        if not isinstance(value, dict):
            raise self._stranger()
        if answer.status >= 400:
            raise from_json(value) if "error" in value else GpuschedError(f"the daemon answered {answer.status}")
        return value

    def _stranger(self) -> Unavailable:
        self.close()
        return Unavailable(
            f"something answers at {self.socket_path}, but it is not gpusched", "check GPUSCHED_SOCKET, or remove it"
        )

    def _lost(self, asked: bool) -> NoReturn:
        self.close()
        if asked:
            raise Unavailable(
                "the connection to the daemon was lost before it answered: it may or may not have been done",
                "look before you try again: gpusched queue",
            )
        raise Unavailable(f"the connection to the daemon at {self.socket_path} was lost", "see: gpusched daemon status")


def _quote(text: str) -> str:
    """Text inside a URL. The library for it is imported only when it is needed, which is seldom."""
    if text.isascii() and text.replace("_", "").replace(",", "").replace(".", "").isalnum():
        return text
    from urllib.parse import quote

    return quote(text, safe=",")


def _query(values: Mapping[str, str | Sequence[str]]) -> str:
    """`?a=1&b=2,3`, without what is empty."""
    texts = {name: value if isinstance(value, str) else ",".join(value) for name, value in values.items()}
    kept = [f"{name}={_quote(text)}" for name, text in texts.items() if text]
    return "?" + "&".join(kept) if kept else ""
