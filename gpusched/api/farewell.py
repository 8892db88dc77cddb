"""The end of the server: whoever had knocked by then is let in and answered, whoever comes later is refused.

A client whose connection was taken by the kernel cannot know that nobody reads it any more: it would be told that its
connection was lost, and somebody who submits, that the job may or may not be there. Must not decide what is answered.
"""

from __future__ import annotations

import asyncio
import select
import socket
import weakref

from aiohttp import web

FIRST_WORD = 1.0  # seconds that a client which has connected and said nothing yet is waited for
# The connections on which somebody has asked something so far.
ASKED: web.AppKey[weakref.WeakSet[asyncio.BaseTransport]] = web.AppKey("asked", weakref.WeakSet)


class Listening:
    """A server that listens; ends with close()."""

    def __init__(self, runner: web.AppRunner, listener: socket.socket) -> None:
        self._runner = runner
        self._listener = listener

    async def close(self) -> None:
        """Refuse new connections, answer everything that was asked before, and close."""
        # 1. the kernel refuses who comes now, and keeps who is in its queue; 2. these are taken out; 3. what they have
        # sent is read; 4. aiohttp waits for the answers and closes.
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._listener.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(0)  # those that the loop has accepted become connections
        await self._let_in()
        end = loop.time() + FIRST_WORD
        while loop.time() < end and (expected := self._expected()):  # noqa: ASYNC110 - nothing tells of such an event
            await asyncio.sleep(0 if expected == "read" else 0.005)
        await asyncio.sleep(0)  # what was read becomes a request
        await self._runner.cleanup()

    async def _let_in(self) -> None:
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        while True:
            try:
                guest, _ = self._listener.accept()
            except OSError:  # EINVAL: the queue is empty; or there is no descriptor left
                return
            guest.setblocking(False)
            await loop.connect_accepted_socket(server, guest)

    def _expected(self) -> str:
        """`read`: something was sent and is not read yet; `first word`: somebody has not said anything so far."""
        server, asked = self._runner.server, self._runner.app[ASKED]
        assert server is not None
        found = (connection.transport for connection in server.connections)
        transports = [one for one in found if one is not None and not one.is_closing()]
        unread = select.poll()
        for transport in transports:
            unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        if unread.poll(0):
            return "read"
        return "" if all(transport in asked for transport in transports) else "first word"
