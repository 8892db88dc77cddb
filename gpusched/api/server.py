"""The HTTP server: routes to handlers, JSON in and out, errors as sentences. It knows no job and no device."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gpusched import __version__
from gpusched.api.farewell import ASKED, Listening
from gpusched.api.peer import caller_of
from gpusched.model.errors import GpuschedError, Refused, UsageError
from gpusched.model.job import Caller
from gpusched.rundir import unix_address

API_VERSION = 1
MAX_BODY = 4 * 1024 * 1024
LARGE = 1024 * 1024  # characters of an answer that leaves much free memory behind
SENT_BY_THEN = 0.5  # seconds
log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who, which path parts, which query, which body."""

    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any


Handler = Callable[[Call], Awaitable[dict[str, Any]]]
Routes = Mapping[tuple[str, str], Handler]  # (method, path) → handler


def build(routes: Routes, *, service_uid: int) -> web.Application:
    """The application that serves these routes."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
    app[ASKED] = weakref.WeakSet()

    def wrap(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            caller = caller_of(_socket_of(request), service_uid=service_uid)
            body = _parse(await request.read()) if request.can_read_body else None
            return _answer(await handler(Call(caller, request.match_info, request.query, body)))

        return handle

    for (method, path), handler in routes.items():
        app.router.add_route(method, path, wrap(handler))
    return app


async def serve(app: web.Application, path: str) -> Listening:
    """Listen on the Unix socket `path`, for its owner only. Raises Refused if another program listens there.

    The caller holds the lock on the state directory, so a socket file that nobody listens on is a dead daemon's.
    """
    if _somebody_listens(path):
        raise Refused(f"another program listens on {path}", "end it, or choose another state directory")
    logging.getLogger("aiohttp.server").addFilter(_is_our_own_trouble)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o077)
    try:
        with unix_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(old)
    listener.listen(128)
    listener.setblocking(False)
    await web.SockSite(runner, listener).start()
    return Listening(runner, listener)


def _is_our_own_trouble(record: logging.LogRecord) -> bool:
    """Bytes that are no HTTP get their answer, but no traceback in the log: anyone could fill a disk with them."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, unix_address(path) as address:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except BlockingIOError:  # its queue is full: somebody is there, and busy
            return True
        except OSError:
            return False
        return True


def _socket_of(request: web.Request) -> socket.socket:
    found = request.get_extra_info("socket")
    raw = getattr(found, "_sock", found)  # asyncio wraps it in a TransportSocket
    assert raw is not None
    return raw  # type: ignore[no-any-return]


def _parse(raw: bytes) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse) if raw else None
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON", "send one JSON object") from None


def _answer(value: Mapping[str, Any], status: int = 200) -> web.Response:
    headers = {"Gpusched-Version": __version__, "Gpusched-Api": str(API_VERSION)}
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > LARGE:
        asyncio.get_running_loop().call_later(SENT_BY_THEN, _give_memory_back)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


def _give_memory_back() -> None:
    """Let the kernel have what a large answer has used: without this, one list of 10 000 jobs stays as 30 MiB."""
    trim = getattr(_libc, "malloc_trim", None)  # of glibc; other C libraries do not hoard
    if trim is not None:
        trim(0)


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> (
    web.StreamResponse
):
    if request.transport is not None:
        request.app[ASKED].add(request.transport)
    try:
        return await handler(request)
    except GpuschedError as error:
        return _answer(error.to_json(), error.http_status)
    except web.HTTPRequestEntityTooLarge:
        large = UsageError(
            f"the request is larger than {MAX_BODY // 1024 // 1024} MiB", "pass large values through a file"
        )
        return _answer(large.to_json(), 413)
    except web.HTTPException as http:
        odd = UsageError(f"{request.method} {request.path}: {http.reason}", "see docs/api.md for what there is")
        return _answer(odd.to_json(), http.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        broken = GpuschedError("the daemon met an error of its own", "its log says more: gpusched daemon status")
        return _answer(broken.to_json(), 500)
