"""Reserved room on the disk: a file that is deleted when the disk is full, so that ends and cancels can be recorded.

On a full disk SQLite can neither insert nor delete. Jobs still end and people still cancel, and that must be written
down. The file is made again when there is room; until then no new work is accepted.
"""

from __future__ import annotations

import os
from pathlib import Path

BALLAST_BYTES = 4 << 20
MARGIN_BYTES = 1 << 20  # what must be free besides, or the file would be made and deleted in turns
_CHUNK = 1 << 18


class Ballast:
    """The reserve next to one database."""

    def __init__(self, path: Path, size: int = BALLAST_BYTES) -> None:
        """`size` in bytes; 0 keeps no reserve."""
        self.path = path
        self.size = size

    @property
    def there(self) -> bool:
        try:
            return self.path.stat().st_size >= self.size
        except OSError:
            return self.size == 0

    def free_bytes(self) -> int:
        """What the file system still has for us."""
        room = os.statvfs(self.path.parent)
        return room.f_bavail * room.f_frsize

    @property
    def needed_bytes(self) -> int:
        """How much must be free for the reserve to be made again."""
        return self.size + MARGIN_BYTES

    def ensure(self) -> bool:
        """Have the reserve in place. False: there is no room for it, or it cannot be written."""
        if self.there:
            return True
        try:
            if self.free_bytes() < self.needed_bytes:
                return False
            self._write()
        except OSError:
            self.release()
            return False
        return True

    def _write(self) -> None:
        # Random bytes: a file system that compresses or shares blocks would keep nothing for zeros.
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = self.size
            while left > 0:
                left -= os.write(fd, os.urandom(min(left, _CHUNK)))
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Give the room back. True: there was a reserve and it is gone now."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True
