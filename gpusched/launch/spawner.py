"""The daemon's end of the warm spawner: keeps one running and asks it to fork supervisors.

Holds no knowledge of attempts; who may start what is decided by the claim file alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from itertools import count
from pathlib import Path

import gpusched.supervisor
from gpusched.failpoints import failpoint
from gpusched.ports import LaunchError

SCRIPT = Path(gpusched.supervisor.__file__).resolve().parent / "spawner.py"
ANSWER_WITHIN = 20.0  # seconds for a fork; a spawner that is slower is replaced
# Nothing of the daemon's own reaches supervisors. Symbols are bound once, and not again in every fork.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LD_BIND_NOW": "1"}


class SpawnerGone(Exception):
    """The spawner ended before it answered: the order may have been carried out or not."""


class Spawner:
    """One spawner process, started when first needed and again whenever it has died."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._partial = b""
        self._numbers = count(1)
        self._sending = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the running spawner; None if there is none."""
        return self._process.pid if self._process else None

    def open(self) -> None:
        """Start the spawner unless it runs. Raises LaunchError. Blocks for a fork and exec (a few ms)."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [self._python, "-I", "-S", "-X", "utf8", str(SCRIPT)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,  # Ctrl-C on a daemon in the foreground must not reach it
            )
        except OSError as trouble:
            ours.close()
            raise LaunchError(f"The process that starts jobs cannot be started: {trouble}.") from trouble
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket, self._partial = ours, b""
        asyncio.get_running_loop().add_reader(ours, self._receive)

    async def fork(self, control: str) -> int:
        """Have a supervisor forked for this control directory; its pid.

        Raises LaunchError if nothing was forked, SpawnerGone if that is not known.
        """
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer: asyncio.Future[int] = loop.create_future()
        self._waiting[number] = answer
        line = json.dumps({"n": number, "dir": control}).encode() + b"\n"
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                async with self._sending:
                    self.open()
                    assert self._socket is not None
                    await loop.sock_sendall(self._socket, line)
                    failpoint("order-sent")
                return await answer
        except TimeoutError:
            self._drop()
            raise SpawnerGone("it did not answer in time") from None
        except OSError as trouble:
            self._drop()
            raise SpawnerGone(str(trouble)) from trouble
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, even if the sending failed first

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            future = self._waiting.get(answer["n"])
            if future is None or future.done():
                continue
            if "pid" in answer:
                future.set_result(answer["pid"])
            else:
                future.set_exception(LaunchError(f"The job could not be started: {answer['error']}."))

    def _drop(self) -> None:
        """Let go of a spawner that is gone or stuck; the next order starts a new one."""
        connection, process = self._socket, self._process
        self._socket = self._process = None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            asyncio.get_running_loop().remove_writer(connection)
            connection.close()
        if process is not None:
            process.kill()  # supervisors are not its to take along: each has its own session
            process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SpawnerGone("it has ended"))

    async def close(self) -> None:
        """End of file for the spawner; supervisors live on. Waits until it is reaped."""
        connection, process = self._socket, self._process
        self._socket = self._process = None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
