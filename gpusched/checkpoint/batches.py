"""The loop over the batches of one epoch, which knows how many of them are done.

Must not save or restore anything itself: it tells its run when the loop begins and ends.
"""

from typing import Any, Iterator, Protocol

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.position import Call


class Watcher(Protocol):
    """What a loop tells to its run."""

    def loop_begins(self, call: Call) -> None: ...

    def batch_begins(self, call: Call, item: Any) -> None: ...

    def loop_ends(self, call: Call) -> None: ...


class Batches:
    """What run.batches() gives: iterate over it once; len() is the number of batches that are left."""

    def __init__(self, run: Watcher, source: Any, call: Call, seed: int, state: Any = None) -> None:
        self._run, self._source, self._call, self._seed, self._state = run, source, call, seed, state

    def __len__(self) -> int:
        length = self._source.length()
        if length is None:
            raise TypeError("this loader has no length")
        return max(0, int(length) - self._call.count)

    def __iter__(self) -> Iterator[Any]:
        call, length = self._call, self._source.length() if self._source.ends_at_length else None
        if call.entered:
            raise CheckpointError(
                "A loop over run.batches() was started twice.", "Call run.batches(loader) again for another loop."
            )
        nothing_left = call.done or (length is not None and call.count >= length)
        items = iter(()) if nothing_left else self._source.iterate(self._seed, call.count, self._state)
        self._run.loop_begins(call)
        try:
            for item in items:
                call.count += 1
                call.open_batch = True
                self._run.batch_begins(call, item)
                yield item
        finally:  # the end, or a break of the script
            call.done, call.open_batch = True, False
            self._run.loop_ends(call)
