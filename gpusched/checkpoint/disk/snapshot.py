"""Copies of tensors in host memory, made in milliseconds, so that training can go on while they are written.

The time of such a copy goes into page faults: fresh memory costs eight times as much as memory that has been touched
before. So there is one arena, as large as the state (and a little more), allocated once and used again for every save:
a run with saves behind its training needs its state's size in host memory on top. Pages of the arena are not shared
with forked processes: else a data-loader worker that is forked would make the next copy pay for all of them again.
Memory that a CUDA device copies into is pinned.
Must not import torch at its top, nor be used by two writers at a time.
"""

import os
import threading
from typing import Any, Dict, List, Tuple

from gpusched.checkpoint.disk import host_memory
from gpusched.checkpoint.disk.plan import Plan, is_dense

_ALIGN = 64
_SLACK = 1 << 20  # bytes that a state may grow by without a new arena, and 1/32 of its size
_SHARE = 32 << 20  # bytes of a copy that are worth a thread
_THREADS = 4
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK


class NoRoom(Exception):
    """Host memory for a copy of the state cannot be had; the message says how much was needed."""


class Arena:
    """Host memory for one snapshot at a time. The next `copy` overwrites the one before."""

    def __init__(self) -> None:
        self._memory: Any = None
        self._bytes: Any = None  # the same as a tensor
        self._pinned = self._for_cuda = False
        self._lock = threading.Lock()  # `reserve` may still run in a thread when the first copy comes

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return len(self._memory) if self._memory is not None else 0

    def reserve(self, plans: List[Plan]) -> None:
        """Allocate and touch what copies of these need. Raises NoRoom."""
        with self._lock:
            self._reserve(plans, touch=True)

    def copy(self, plans: List[Plan]) -> List[Plan]:
        """The plans with copies of their tensors, valid until the next call. Raises NoRoom."""
        if not any(plan.stored for plan in plans):
            return plans  # a run without torch
        with self._lock:
            self._reserve(plans, touch=False)
            return self._copy(plans)

    def close(self) -> None:
        """Give the memory back, as soon as nobody uses the last copies any more."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._unpin()
        self._memory = self._bytes = None

    def _reserve(self, plans: List[Plan], touch: bool) -> None:
        tensors = [tensor for plan in plans for tensor in plan.stored.values()]
        needed = sum(_rounded(_size(tensor)) for tensor in tensors)
        for_cuda = any(tensor.is_cuda for tensor in tensors)
        if needed <= self.size and for_cuda <= self._for_cuda:
            return
        self._drop()  # first, so that there are never two
        size = needed + needed // 32 + _SLACK
        free = host_memory.available()
        if free is not None and size > free:
            raise NoRoom("a copy of the state needs %d MiB of memory, and %d MiB are left" % (size >> 20, free >> 20))
        self._allocate(size)
        self._for_cuda = for_cuda
        if for_cuda:
            self._pin()
        elif touch:
            self._bytes.zero_()

    def _allocate(self, size: int) -> None:
        import mmap

        import torch

        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise NoRoom("a copy of the state needs %d MiB of memory (%s)" % (size >> 20, error)) from None
        for advice in (_WIPE_ON_FORK, getattr(mmap, "MADV_HUGEPAGE", 14)):
            try:
                memory.madvise(advice)
            except (OSError, ValueError, AttributeError):
                pass  # an older kernel, or another one: slower, not wrong
        self._memory, self._bytes = memory, torch.frombuffer(memory, dtype=torch.uint8)

    def _pin(self) -> None:
        import torch

        runtime: Any = torch.cuda
        status = runtime.cudart().cudaHostRegister(self._bytes.data_ptr(), self.size, 0)
        self._pinned = int(status) == 0  # else the copies are merely slower

    def _unpin(self) -> None:
        if self._pinned and self._bytes is not None:
            import torch

            runtime: Any = torch.cuda
            runtime.cudart().cudaHostUnregister(self._bytes.data_ptr())
        self._pinned = False

    def _copy(self, plans: List[Plan]) -> List[Plan]:
        import torch

        devices = {tensor.device for plan in plans for tensor in plan.stored.values() if tensor.is_cuda}
        for device in devices:
            torch.cuda.synchronize(device)  # whichever stream wrote to the tensors
        moves: List[Tuple[int, int, int]] = []
        copies, at = [], 0
        for plan in plans:
            stored: Dict[str, Any] = {}
            for name, tensor in plan.stored.items():
                size = _size(tensor)
                stored[name] = self._place(tensor, at, size, moves)
                at += _rounded(size)
            copies.append(Plan(stored, plan.notes))
        _move(moves)
        for device in devices:
            torch.cuda.synchronize(device)
        return copies

    def _place(self, tensor: Any, at: int, size: int, moves: List[Tuple[int, int, int]]) -> Any:
        """A tensor like this one in the arena: filled now, or its memory noted in `moves`."""
        flat = self._bytes[at : at + size].view(tensor.dtype)
        if not is_dense(tensor):
            return flat.view(tensor.shape).copy_(tensor)
        copy = flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())
        if tensor.device.type == "cpu":
            moves.append((copy.data_ptr(), tensor.data_ptr(), size))
            return copy
        return copy.copy_(tensor, non_blocking=tensor.is_cuda and self._pinned)


def _size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _rounded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _move(moves: List[Tuple[int, int, int]]) -> None:
    """Copy memory, large amounts in threads: one core alone does not fill the memory's bandwidth."""
    total = sum(size for _, _, size in moves)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    count = max(1, min(_THREADS, cores, total // _SHARE))
    share = -(-total // count)
    shares: List[List[Tuple[int, int, int]]] = [[]]
    room = share
    for target, source, size in moves:
        while size > room:
            shares[-1].append((target, source, room))
            target, source, size, room = target + room, source + room, size - room, share
            shares.append([])
        shares[-1].append((target, source, size))
        room -= size
    threads = []
    for one in shares[1:]:
        thread = threading.Thread(target=_move_share, args=(one,), daemon=True)
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:  # no more threads
            _move_share(one)
    _move_share(shares[0])
    for thread in threads:
        thread.join()


def _move_share(moves: List[Tuple[int, int, int]]) -> None:
    import ctypes

    for target, source, size in moves:
        ctypes.memmove(target, source, size)
