"""Small things that ranks tell each other, over gloo groups of our own; and what to do when a peer is slow or gone.

A slow peer is waited for, with a sentence: it may be evaluating, or writing a large file. A peer that has died closes
its connections, which is noticed at once. Must not import torch before the script does, nor know what is told.
"""

import json
import os
import time
from typing import Any, Dict, List, NoReturn, Optional

from gpusched.checkpoint import leave
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.ranks.ending import tidy_at_exit

ENV_TIMEOUT = "GPUSCHED_RANK_TIMEOUT"
_TIMEOUT = 1800.0  # seconds; as torch's own
_SAY_AFTER = 15.0  # seconds of waiting for a peer before a person is told


class Alone:
    """One process: it talks to itself."""

    rank, size = 0, 1

    def gather(self, value: Any) -> List[Any]:
        """The values (JSON) of all ranks in their order, on all ranks. A collective: every rank calls it."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (JSON) on all ranks. A collective: every rank calls it."""
        return value


class Talk(Alone):
    """All ranks of the script's default process group, over one gloo group of which this is the only user.

    in_background: used by a thread that writes behind the training. A peer that is gone is an error there, for
    whoever collects the outcome; in the training thread it ends this process with a sentence.
    """

    def __init__(self, distributed: Any, group: Any, in_background: bool = False) -> None:
        self._dist, self._group, self._background = distributed, group, in_background
        self._pid = os.getpid()
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.patience = patience()

    def gather(self, value: Any) -> List[Any]:
        """The values (JSON) of all ranks in their order, on all ranks. A collective: every rank calls it."""
        import torch

        data, where = json.dumps(value).encode(), "around a checkpoint"
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.wait(self.start_max(sizes), where)
        mine = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._only_here()
        try:
            work = self._dist.all_gather(found, mine, group=self._group, async_op=True)
        except RuntimeError as error:
            self._lost(error)
        self.wait(work, where)
        return [json.loads(bytes(one[:size].tolist())) for one, size in zip(found, sizes.tolist())]  # noqa: B905

    def broadcast(self, value: Any) -> Any:
        return self.gather(value if self.rank == 0 else None)[0]

    def start_max(self, message: Any) -> Any:
        """Begin to replace every number of this tensor by the largest of all ranks; `wait` for what this returns."""
        self._only_here()
        try:
            return self._dist.all_reduce(message, self._dist.ReduceOp.MAX, group=self._group, async_op=True)
        except RuntimeError as error:
            self._lost(error)

    def wait(self, work: Any, where: str) -> None:
        """Until a collective is complete. `where` tells a person what this rank is doing."""
        from datetime import timedelta

        began = told = time.monotonic()
        while True:
            try:
                work.wait(timedelta(seconds=1))
                return
            except RuntimeError as error:
                if work.is_completed():
                    self._lost(error)
            now = time.monotonic()
            if now - began > self.patience:
                self._end(
                    "the other ranks did not come in %.0f s (%s): they hang, or do not make this call; leaving. %s "
                    "sets this time in seconds" % (self.patience, where, ENV_TIMEOUT)
                )
            if now - told > _SAY_AFTER and not self._background:
                told = now
                text = "waiting for the other ranks (%s) for %.0f s; this call has to be made on every rank"
                say("rank %d: %s" % (self.rank, text % (where, now - began)))

    def _lost(self, error: Exception) -> NoReturn:
        reason = str(error).partition(". This is typically")[0].rpartition("] ")[2][:100] or str(error)[:100]
        self._end(
            "another rank of this run has ended (%s); without it there is nothing to go on with, so this one leaves, "
            "too. The last good checkpoint stays; the other rank's output tells why it ended" % reason
        )

    def _end(self, sentence: str) -> NoReturn:
        if self._background:
            raise CheckpointError(sentence.partition(";")[0][0].upper() + sentence.partition(";")[0][1:] + ".")
        say("rank %d: %s" % (self.rank, sentence))
        leave.leave(1)

    def _only_here(self) -> None:
        if os.getpid() != self._pid:
            raise CheckpointError(
                "A safe point was reached in a child process that a rank has forked.",
                "Call run.step() and run.check() in the process that called init_process_group().",
            )


_groups: Dict[int, Any] = {}  # id of the script's default group → (that group, ours)


def own_groups(distributed: Any, count: int) -> List[Any]:
    """Gloo groups of all ranks, made once per process. A collective call the first time.

    Raises CheckpointError if the ranks cannot be connected.
    """
    from datetime import timedelta

    world = distributed.group.WORLD
    if id(world) not in _groups:
        try:
            timeout = timedelta(seconds=patience() + 60)
            ours = [distributed.new_group(backend="gloo", timeout=timeout) for _ in range(count)]
        except RuntimeError as error:
            raise CheckpointError(
                "The ranks cannot be connected for agreeing on checkpoints (gloo: %s)." % error,
                "If the host's name cannot be resolved, set GLOO_SOCKET_IFNAME=lo, or to its network device.",
            ) from None
        _groups.clear()  # of an earlier init_process_group
        _groups[id(world)] = (world, ours)
        tidy_at_exit()
    found: List[Any] = _groups[id(world)][1]
    return found


def patience() -> float:
    """Seconds that a rank waits for the others. Raises CheckpointError if the variable that sets it is no number."""
    text: Optional[str] = os.environ.get(ENV_TIMEOUT)
    try:
        seconds = float(text) if text else _TIMEOUT
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise CheckpointError("%s=%s is not a time in seconds." % (ENV_TIMEOUT, text), "Try %s=600." % ENV_TIMEOUT)
    return seconds
