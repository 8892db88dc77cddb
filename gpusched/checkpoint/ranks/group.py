"""The ranks of a distributed run, and how they agree on the safe point at which all of them save or stop.

A wish to stop reaches ranks at different times, or one rank only, and a rank that acts on its own leaves the others
hanging in their next all-reduce. So every safe point is counted, and some of them carry a *round*:

    1. at safe point s every rank starts one asynchronous all-reduce(MAX) of [wish, place, -place, time per safe point]
    2. training goes on; the reduction happens meanwhile
    3. at safe point s + n every rank reads the result. It is the same on all of them, so all save here, or none does
    4. n of the next round comes from the reduced time, so it is the same on all ranks, too: about ten rounds a second,
       one at every safe point where those are slow, and where one takes half a second the answer is waited for at once

In a rehearsal every safe point has its round, so that a stop comes one safe point after the one it was asked for.
This goes over gloo groups of our own: the script's group is never used. Must not import torch before the script does,
nor know what is saved.
"""

import atexit
import os
import sys
import time
from typing import Any, Dict, List

from gpusched import rundir
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.talk import Alone, Talk, own_groups

_ROUND = 0.1  # seconds between rounds, where safe points are quicker than that
_MOST_POINTS = 64  # between rounds: bounds the delay if the loop suddenly becomes slow
_AT_ONCE = 0.5  # seconds per safe point from which a millisecond of waiting is less than a step of delay
_KINDS = ["", "step", "micro_step", "check", "epoch"]


class Ranks(Alone):
    """A run of one process: agrees with itself. `behind` talks in the threads that write behind the training."""

    behind = Alone()

    def agree(self, wish: int, place: int, kind: str = "") -> int:
        """The wish (0 nothing, 1 save, 2 stop) on which all ranks agree at this very safe point.

        Called by every rank at every safe point. `place`, the steps taken, and `kind`, the call that makes the safe
        point ("step", "micro_step", "check", "epoch"), must be equal on all ranks.
        Raises CheckpointError if ranks are at different places. Ends the process if another rank has died.
        """
        return wish

    def close(self) -> None:
        """No more safe points will come. Harmless when repeated."""


ALONE = Ranks()


def find(needed: bool = True) -> Ranks:
    """The ranks of this run. With several it is a collective call, once per Run.

    Raises CheckpointError if this process was started as one of several ranks and they are not connected yet; if they
    are not `needed` (nothing will be saved) it then is a run of its own.
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


class Group(Ranks):
    """All ranks of the script's default process group."""

    def __init__(self, distributed: Any) -> None:
        agreement, talk, behind = own_groups(distributed, 3)
        self._agreement, self._talk = Talk(distributed, agreement), Talk(distributed, talk)
        self.behind = Talk(distributed, behind, in_background=True)
        self.rank, self.size, self._pid = self._talk.rank, self._talk.size, os.getpid()
        self._pending: Any = None  # (work, tensor, kind) of the round that was started
        self._kind = self._timed = ""  # of the newest safe point; of the one at which the timed round began
        self._point = self._started_at = self._read_at = 0
        self._started = time.monotonic()
        self._wish = 0  # what this rank brings into the next round
        self._pace: Dict[str, int] = {}  # microseconds per safe point, agreed, by kind
        self._rehearsed = any(self._talk.gather(_always()))
        atexit.register(self.close)

    def gather(self, value: Any) -> List[Any]:
        return self._talk.gather(value)

    def broadcast(self, value: Any) -> Any:
        return self._talk.broadcast(value)

    def agree(self, wish: int, place: int, kind: str = "") -> int:
        self._point += 1
        if wish > self._wish:
            self._wish = wish
        if kind != self._kind:  # of another duration, perhaps: no more of them than its own pace allows
            self._kind, self._read_at = kind, min(self._read_at, self._point + self._between(kind) - 1)
        return self._round(place, kind) if self._point >= self._read_at else 0

    def _round(self, place: int, kind: str) -> int:
        """The end of a round and the beginning of the next: 0, or what is agreed for this safe point."""
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
        self._pending = (self._agreement.start_max(message), message, self._timed)
        self._started, self._started_at, self._timed = now, self._point, kind
        self._read_at = self._point + self._between(kind)

    def _read(self) -> int:
        """The answer of the round that is under way; 0 if there is none."""
        if self._pending is None:
            return 0
        (work, message, timed), self._pending = self._pending, None
        self._agreement.wait(work, self._where())
        agreed, highest, lowest, micros = message.tolist()
        self._compare(highest, lowest)
        if micros:
            self._pace[timed] = micros
        return int(agreed)

    def _reduce(self, numbers: List[int]) -> List[int]:
        import torch

        message = torch.tensor(numbers, dtype=torch.int64)
        self._agreement.wait(self._agreement.start_max(message), self._where())
        return [int(number) for number in message.tolist()]

    def _between(self, kind: str) -> int:
        """Safe points from one round to the next. Computed from agreed numbers only."""
        micros = 0 if self._rehearsed else self._pace.get(kind, 0)
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
        return "in %s, safe point %d" % (_call(self._kind), self._point)

    def close(self) -> None:
        """Wait a moment for the round that is under way, so that nobody's connection is closed in the middle of it."""
        atexit.unregister(self.close)
        pending, self._pending = self._pending, None
        if pending is not None and os.getpid() == self._pid:
            from datetime import timedelta

            try:
                pending[0].wait(timedelta(seconds=2))
            except RuntimeError:
                pass  # a peer that is gone, or has raised an error of its own
        self._read_at = self._started_at = 0


def _always() -> bool:
    """Whether to agree at every safe point, so that a stop comes one later: in rehearsals, and where that is wanted."""
    return bool(os.environ.get(rundir.ENV_TRACE)) or os.environ.get(rundir.ENV_AGREE) == "always"


def _encode(place: int, kind: str) -> int:
    return place * 8 + (_KINDS.index(kind) if kind in _KINDS else 0)


def _decode(number: int) -> str:
    return "%s at step %d" % (_call(_KINDS[number % 8]), number // 8)


def _call(kind: str) -> str:
    return "run.%s()" % kind if kind not in ("", "epoch") else "the end of an epoch" if kind else "a safe point"
