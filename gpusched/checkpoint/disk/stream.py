"""Bytes to and from one file with their SHA-256 taken on the way, if possible in a thread of its own: the disk and the
hash each keep one core busy, and both let Python's other threads run.

Every write goes straight to the descriptor. A buffer of Python's would be inherited by a process that is forked in the
middle (a data-loader worker), which would write it a second time when it ends.
Must not know what the bytes mean.
"""

import hashlib
import os
import queue
import threading
from typing import Any, Dict, Iterable, Optional

_AHEAD = 8  # pieces that may wait to be hashed
_WRITEBACK = 32 << 20  # bytes after which the kernel is asked to start writing: fsync then has less left to wait for
_SKIP = 1 << 20


def _spare_core() -> bool:
    """Whether a core is idle anyway. Behind the training, on a machine with two, the training has the other one."""
    if threading.current_thread() is threading.main_thread():
        return True
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) > 2


class Hash:
    """SHA-256 of pieces that are handed over in order, in a thread if there is a core for it, else in place."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._failed: Optional[BaseException] = None
        self._queue: "queue.Queue[Optional[memoryview]]" = queue.Queue(_AHEAD)
        self._thread: Optional[threading.Thread] = None
        if _spare_core():
            thread = threading.Thread(target=self._work, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # the interpreter is ending, or a limit on threads is reached
                pass

    def add(self, piece: memoryview) -> None:
        if self._thread is None:
            self._digest.update(piece)
        else:
            self._queue.put(piece)

    def close(self) -> str:
        """The checksum of everything, as manifests write it. May be called more than once."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            raise self._failed
        return "sha256:" + self._digest.hexdigest()

    def _work(self) -> None:
        while True:
            piece = self._queue.get()
            if piece is None:
                return
            try:
                self._digest.update(piece)
            except BaseException as error:  # the other side must not wait for a queue that nobody empties
                self._failed = error


def write(path: str, pieces: Iterable[memoryview]) -> Dict[str, Any]:
    """Write a new file, fsync it, and give its manifest entry. Raises OSError; then the file is left half written."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    digest, size, asked = Hash(), 0, 0
    try:
        for piece in pieces:
            digest.add(piece)
            view = piece
            while len(view):
                count = os.write(fd, view)
                view, size = view[count:], size + count
            if size - asked >= _WRITEBACK:
                _start_writeback(fd, asked, size - asked)
                asked = size
        os.fsync(fd)
    finally:
        checksum = digest.close()
        os.close(fd)
    return {"size": size, "checksum": checksum}


def write_bytes(path: str, data: bytes) -> Dict[str, Any]:
    """The same for a small file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while len(view):
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return {"size": len(data), "checksum": "sha256:" + hashlib.sha256(data).hexdigest()}


def _start_writeback(fd: int, offset: int, count: int) -> None:
    """Linux only, and only a hint: dirty pages go to the disk now and not all at the fsync."""
    global _sync_file_range
    if _sync_file_range is None:
        try:
            import ctypes

            function = ctypes.CDLL(None, use_errno=True).sync_file_range
            function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
            _sync_file_range = function
        except (OSError, AttributeError):
            _sync_file_range = False
    if _sync_file_range:
        _sync_file_range(fd, offset, count, 2)  # SYNC_FILE_RANGE_WRITE


_sync_file_range: Any = None


class Reader:
    """Reads a file from its beginning to its end, once; with `hashing` it takes the checksum on the way."""

    def __init__(self, path: str, hashing: bool) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._hash = Hash() if hashing else None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        if self._hash is not None:
            self._hash.close()

    def fill(self, view: memoryview) -> None:
        """Fill a writable view. Raises ValueError if the file ends too early."""
        done = 0
        while done < len(view):
            piece = view[done : done + (8 << 20)]
            count = os.readv(self._fd, [piece])
            if count == 0:
                raise ValueError("the file is cut off")
            if self._hash is not None:
                self._hash.add(piece[:count])
            done += count

    def skip(self, count: int) -> None:
        """Read past so many bytes."""
        while count > 0:
            size = min(count, _SKIP)
            self.fill(memoryview(bytearray(size)))
            count -= size

    def checksum(self) -> str:
        """Of everything that has been read."""
        assert self._hash is not None
        return self._hash.close()
