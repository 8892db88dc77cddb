"""Reading a job's output file while it grows. The file is opened by this process, as the user, never by the daemon."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from gpusched.model.errors import Refused

_CHUNK = 1 << 16


class Tail:
    """Copies what is new in a file to a stream. The file may not exist yet, be cut short, or be another one later."""

    def __init__(self, out: BinaryIO, begin: int = 0) -> None:
        self.out = out
        self.begin = begin  # where to start in the first file
        self.path = ""
        self.fd = -1
        self.place = 0
        self.at_line_start = True
        self.last = b""  # the end of what was copied

    def switch(self, path: str | None) -> None:
        """Follow this path from now on; what the previous file still holds is copied first."""
        if path and path != self.path:
            self.copy()
            self.close()
            self.begin = self.begin if not self.path else 0
            self.path = path

    def copy(self) -> bool:
        """Copy everything new. Returns whether there was anything. Raises Refused if it is not a plain file."""
        if not self._open():
            return False
        if os.fstat(self.fd).st_size < self.place:
            self.place = 0  # somebody has emptied it
        copied = False
        while data := os.pread(self.fd, _CHUNK, self.place):
            self.place += len(data)
            self.out.write(data)
            self.at_line_start = data.endswith(b"\n")
            self.last = data[-2000:]
            copied = True
        if copied:
            self.out.flush()
        return copied

    def _open(self) -> bool:
        if self.fd >= 0:
            return True
        if not self.path:
            return False
        try:
            # Not blocking, for the case that the path is a pipe nobody writes to.
            self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Refused(
                f"the output {self.path} cannot be read: {error.strerror}", "its owner can: see gpusched show JOB"
            ) from None
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            self.close()
            raise Refused(f"the output {self.path} is not a plain file", "there is nothing to show again")
        self.place, self.begin = self.begin, 0
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.place = -1, 0


def last_lines(path: str, count: int) -> int:
    """Where the last `count` lines of a file begin; 0 if it has fewer, or is not there."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            end = file.seek(0, os.SEEK_END)
            if count == 0:
                return end
            place, seen = end, 0
            while place > 0:
                size = min(_CHUNK, place)
                place -= size
                file.seek(place)
                data = file.read(size)
                # A newline at the very end closes the last line, it does not begin another.
                stop = len(data) - 1 if place + size == end and data.endswith(b"\n") else len(data)
                while (found := data.rfind(b"\n", 0, stop)) >= 0:
                    seen += 1
                    if seen == count:
                        return place + found + 1
                    stop = found
    except OSError:
        return 0
    return 0
