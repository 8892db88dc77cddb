"""The ranks of a distributed run: agreeing on the safe point at which all of them save or stop, and telling each other
small things.

A wish to stop reaches ranks at different times, or one rank only, and a rank that acts on its own leaves the others
hanging in their next all-reduce. So every safe point is counted, and some of them carry a *round*:

    1. at safe point s every rank starts one asynchronous all-reduce(MAX) of [wish, place, -place, time per safe point]
    2. training goes on; the reduction happens meanwhile
    3. at safe point s + n every rank reads the result. It is the same on all of them, so all save here, or none does
    4. n of the next round comes from the reduced time, so it is the same on all ranks, too: about ten rounds a second,
       one at every safe point where those are slow, and where one takes half a second the answer is waited for at once

Two gloo groups are made for this and for nothing else: the script's own group is never used. A slow peer is waited for,
with a sentence; a peer that has died closes its connections, which is noticed at once. Must not import torch before the
script does, nor know what is saved.
"""

import atexit
import json
import os
import sys
import time
from datetime import timedelta
from typing import Any, Dict, List, NoReturn, Optional

from gpusched.checkpoint import leave
from gpusched.checkpoint.errors import CheckpointError, say

ENV_TIMEOUT = "GPUSCHED_RANK_TIMEOUT"
_TIMEOUT = 1800.0  # seconds; torch's own default: another rank may be evaluating, or writing a large file
_SAY_AFTER = 15.0  # seconds of waiting for a peer before a person is told
_ROUND = 0.1  # seconds between rounds, where safe points are quicker than that
_MOST_POINTS = 64  # between rounds: bounds the delay if the loop suddenly becomes slow
_KINDS = ["", "step", "micro_step", "check", "epoch"]
_AT_ONCE = 0.5  # seconds per safe point from which a millisecond of waiting is less than a step of delay


class Ranks:
    """A run of one process: agrees with itself."""

    rank, size = 0, 1

    def agree(self, wish: int, place: int, kind: str = "") -> int:
        """The wish (0 nothing, 1 save, 2 stop) on which all ranks agree at this very safe point.

        Called by every rank at every safe point. `place`, the steps taken, and `kind`, the call that makes the safe
        point ("step", "micro_step", "check", "epoch"), must be equal on all ranks.
        Raises CheckpointError if ranks are at different places. Ends the process if another rank has died.
        """
        return wish

    def gather(self, value: Any) -> List[Any]:
        """The values (JSON) of all ranks in their order, on all ranks. A collective: every rank calls it."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (JSON) on all ranks. A collective: every rank calls it."""
        return value

    def close(self) -> None:
        """No more safe points will come. Harmless when repeated."""


ALONE = Ranks()


def find(needed: bool = True) -> Ranks:
    """The ranks of this run. With several it is a collective call, once per Run. `needed`: something will be saved.

    Raises CheckpointError if this process was started as one of several ranks and they are not connected yet.
    """
    torch = sys.modules.get("torch")
    distributed = torch.distributed if torch is not None and torch.distributed.is_available() else None
    if distributed is not None and distributed.is_initialized():
        return Group(distributed) if distributed.get_world_size() > 1 else ALONE
    world = os.environ.get("WORLD_SIZE", "1")
    if needed and world.isdigit() and int(world) > 1:
        raise CheckpointError(
            "This process is one of %s ranks (WORLD_SIZE), but torch.distributed is not initialized yet." % world,
            "Call torch.distributed.init_process_group() before Run(...), or unset WORLD_SIZE if it is not meant.",
        )
    return ALONE


_groups: Dict[int, Any] = {}  # id of the script's default group → (that group, our two)


class Group(Ranks):
    """All ranks of the script's default process group."""

    def __init__(self, distributed: Any) -> None:
        self._dist, self._pid = distributed, os.getpid()
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.patience = _patience()
        self._agreement, self._talk = self._make_groups()
        self._pending: Any = None  # (work, tensor) of the round that was started
        self._kind = self._timed = ""  # of the newest safe point; of the one at which the timed round began
        self._point = self._started_at = self._read_at = 0
        self._started = time.monotonic()
        self._wish = 0  # what this rank brings into the next round
        self._pace: Dict[str, int] = {}  # microseconds per safe point, agreed, by kind
        atexit.register(self.close)

    def _make_groups(self) -> Any:
        world = self._dist.group.WORLD
        if id(world) not in _groups:
            try:
                timeout = timedelta(seconds=self.patience + 60)
                ours = [self._dist.new_group(backend="gloo", timeout=timeout) for _ in range(2)]
            except RuntimeError as error:
                raise CheckpointError(
                    "The ranks cannot be connected for agreeing on checkpoints (gloo: %s)." % error,
                    "If the host's name cannot be resolved, set GLOO_SOCKET_IFNAME=lo, or to its network device.",
                ) from None
            _groups.clear()  # of an earlier init_process_group
            _groups[id(world)] = (world, ours)
        return _groups[id(world)][1]

    # agreeing

    def agree(self, wish: int, place: int, kind: str = "") -> int:
        self._point += 1
        if wish > self._wish:
            self._wish = wish
        if kind != self._kind:  # of another duration, perhaps: no more of them than its own pace allows
            self._kind, self._read_at = kind, min(self._read_at, self._point + self._between(kind) - 1)
        return self._round(place, kind) if self._point >= self._read_at else 0

    def _round(self, place: int, kind: str) -> int:
        """The end of a round and the beginning of the next: 0, or what is agreed for this safe point."""
        self._only_here()
        agreed = self._read()
        if not agreed:
            self._start(place, kind)
            if self._slow(kind):
                agreed = self._read()
        if agreed:
            here = _encode(place, kind)
            self._compare(*self._reduce([here, -here]))  # whether all have come here: a collective save follows
            self._wish = 0 if agreed >= self._wish else self._wish
            self._started_at = 0  # the time that saving takes says nothing about the loop
        return agreed

    def _start(self, place: int, kind: str) -> None:
        import torch

        now, passed = time.monotonic(), self._point - self._started_at
        measured = int((now - self._started) / passed * 1e6) if self._started_at else 0
        here = _encode(place, kind)
        message = torch.tensor([self._wish, here, -here, measured], dtype=torch.int64)
        self._pending = (self._all_reduce(message), message, self._timed)
        self._started, self._started_at, self._timed = now, self._point, kind
        self._read_at = self._point + self._between(kind)

    def _read(self) -> int:
        """The answer of the round that is under way; 0 if there is none."""
        if self._pending is None:
            return 0
        (work, message, timed), self._pending = self._pending, None
        self._wait(work, self._where())
        agreed, highest, lowest, micros = message.tolist()
        self._compare(highest, lowest)
        if micros:
            self._pace[timed] = micros
        return int(agreed)

    def _between(self, kind: str) -> int:
        """Safe points from one round to the next. Computed from agreed numbers only."""
        micros = self._pace.get(kind, 0)
        return min(_MOST_POINTS, max(1, int(_ROUND * 1e6 / micros))) if micros else 1

    def _slow(self, kind: str) -> bool:
        return self._pace.get(kind, 0) >= _AT_ONCE * 1e6

    def _compare(self, highest: int, lowest: int) -> None:
        if highest != -lowest:
            raise CheckpointError(
                "The ranks of this run are at different places: one is in %s, another in %s, at safe point %d of each."
                % (_decode(-lowest), _decode(highest), self._point),
                "Call run.step(), run.micro_step() and run.check() on every rank equally often, and give every rank "
                "as many batches as the others (DistributedSampler, or run.batches without a sampler of your own).",
            )

    def _where(self) -> str:
        return "in %s, safe point %d" % (_decode(_encode(0, self._kind)).partition(" at ")[0], self._point)

    # talking

    def gather(self, value: Any) -> List[Any]:
        import torch

        data = json.dumps(value).encode()
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self._wait(self._all_reduce(sizes, group=self._talk), "around a checkpoint")
        longest = int(sizes.max())
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        work = self._call(lambda: self._dist.all_gather(all_of_them, mine, group=self._talk, async_op=True))
        self._wait(work, "around a checkpoint")
        texts = [bytes(one[:size].tolist()) for one, size in zip(all_of_them, sizes.tolist())]  # noqa: B905
        return [json.loads(text) for text in texts]

    def broadcast(self, value: Any) -> Any:
        return self.gather(value if self.rank == 0 else None)[0]

    def _reduce(self, numbers: List[int]) -> List[int]:
        import torch

        message = torch.tensor(numbers, dtype=torch.int64)
        self._wait(self._all_reduce(message), self._where())
        return [int(number) for number in message.tolist()]

    def _all_reduce(self, message: Any, group: Any = None) -> Any:
        operation = self._dist.ReduceOp.MAX
        group = group or self._agreement
        return self._call(lambda: self._dist.all_reduce(message, operation, group=group, async_op=True))

    def _call(self, start: Any) -> Any:
        self._only_here()
        try:
            return start()
        except RuntimeError as error:
            self._lost(error)

    # waiting

    def _wait(self, work: Any, where: str) -> None:
        """Until a collective is complete. A slow peer is waited for, a dead one ends this process."""
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
                self._give_up(where)
            if now - told > _SAY_AFTER:
                told = now
                text = "waiting for the other ranks (%s) for %.0f s; this call has to be made on every rank"
                self._say(text % (where, now - began))

    def _give_up(self, where: str) -> NoReturn:
        self._say(
            "the other ranks did not come in %.0f s (%s): either they hang, or this rank calls run.step() or "
            "run.check() where they do not; leaving. %s sets this time in seconds" % (self.patience, where, ENV_TIMEOUT)
        )
        leave.leave(1)

    def _lost(self, error: Exception) -> NoReturn:
        reason = str(error).partition(". This is typically")[0].rpartition("] ")[2][:100]
        self._say(
            "another rank of this run has ended (%s); without it there is nothing to go on with, so this one leaves, "
            "too. The last good checkpoint stays; the other rank's output tells why it ended" % (reason or error)
        )
        leave.leave(1)

    def _say(self, sentence: str) -> None:
        say("rank %d: %s" % (self.rank, sentence))

    def _only_here(self) -> None:
        if os.getpid() != self._pid:
            raise CheckpointError(
                "A safe point was reached in a child process that a rank has forked.",
                "Call run.step() and run.check() in the process that called init_process_group().",
            )

    def close(self) -> None:
        """Wait a moment for the round that is under way, so that nobody's connection is closed in the middle of it."""
        atexit.unregister(self.close)
        pending, self._pending = self._pending, None
        if pending is not None and os.getpid() == self._pid:
            try:
                pending[0].wait(timedelta(seconds=2))
            except RuntimeError:
                pass  # a peer that is gone, or has raised an error of its own
        self._read_at = 0


def _encode(place: int, kind: str) -> int:
    return place * 8 + (_KINDS.index(kind) if kind in _KINDS else 0)


def _decode(number: int) -> str:
    kind = _KINDS[number % 8]
    call = "run.%s()" % kind if kind not in ("", "epoch") else "the end of an epoch" if kind else "a safe point"
    return "%s at step %d" % (call, number // 8)


def _patience() -> float:
    text: Optional[str] = os.environ.get(ENV_TIMEOUT)
    try:
        seconds = float(text) if text else _TIMEOUT
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise CheckpointError("%s=%s is not a time in seconds." % (ENV_TIMEOUT, text), "Try %s=600." % ENV_TIMEOUT)
    return seconds
