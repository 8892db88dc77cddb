"""The daemon's doorbell: a Unix datagram socket on which supervisors say that an attempt's files have changed.

Nothing of a datagram is believed but which attempt to look at; what is no attempt's key is ignored.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpusched import rundir
from gpusched.model.job import AttemptKey

_KEY = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,8})", re.ASCII)
AT_ONCE = 256  # datagrams per turn of the loop, so that a flood of them starves nobody


def attempt_key(text: str) -> AttemptKey | None:
    """Read `42-1`; None for anything else."""
    match = _KEY.fullmatch(text)
    return AttemptKey(int(match[1]), int(match[2])) if match else None


class Doorbell:
    """Calls back on the event loop, once per ring, with the attempt that rang."""

    def __init__(self, path: Path, rung: Callable[[AttemptKey], None]) -> None:
        self._path = path
        self._rung = rung
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Bind (replacing what an earlier daemon left) and listen. Raises OSError.

        The caller holds the lock of the state directory, so the path is nobody else's.
        """
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(bell.fileno(), 0o600)  # before bind: the file is born with this mode
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            with rundir.unix_address(str(self._path)) as address:
                bell.bind(address)
        except BaseException:
            bell.close()
            raise
        self._socket = bell
        asyncio.get_running_loop().add_reader(bell, self._receive)

    def _receive(self) -> None:
        for _ in range(AT_ONCE):
            if self._socket is None:  # closed by a callback
                return
            try:
                data = self._socket.recv(64)
            except OSError:
                return
            if (key := attempt_key(data.decode("ascii", "replace"))) is not None:
                self._rung(key)

    def close(self) -> None:
        """Stop listening. The file goes too; supervisors find nobody and do not mind."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        with suppress(OSError):
            os.unlink(self._path)
