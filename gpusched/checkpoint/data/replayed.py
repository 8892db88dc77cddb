"""Iterables that cannot start in the middle: the batches that were done are produced again and thrown away.

That is exact if they are produced the same way again, since they draw from generators seeded for the epoch.
Must not import torch.
"""

import itertools
import time
from typing import Any, Callable, Dict, Iterator, Optional

from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import Stream

Tell = Callable[[str], None]
_PATIENCE = 5.0  # seconds of silence before it says how long it will take


class Replayed:
    """Produced from the beginning under the epoch's own seed, without the first batches where that is asked for."""

    logical = False
    ranks = 1  # of the run: a stream is usually divided among them by itself
    pace: Optional[float] = None  # seconds that a batch took to produce; to be set from the run that saved, if known

    def __init__(self, items: Any, tell: Tell) -> None:
        self._items, self._tell = items, tell
        self._stream = self._new_stream(0)
        self._used = False

    @property
    def ends_at_length(self) -> bool:
        """Not with several workers: each of them may end with a batch that is not full, and then there are more."""
        return getattr(self._items, "num_workers", 0) < 2

    def length(self) -> Optional[int]:
        try:
            return len(self._items)
        except TypeError:
            return None

    def identity(self) -> Dict[str, Any]:
        """What must not change between a save and its resume, in words and numbers."""
        length = self.length()
        return {"ranks": self.ranks} if length is None else {"ranks": self.ranks, "length": length}

    def global_batch(self) -> Optional[int]:
        return None

    def state(self) -> Any:
        return None

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        if self._used and hasattr(self._items, "__next__"):
            self._tell("this %s was gone through already: make a new one in every epoch" % type(self._items).__name__)
        self._used = True
        self._stream = stream = self._new_stream(seed)
        with stream.active():
            iterator = iter(self._items)
        if start and not self._skip(iterator, stream, start):
            return
        yield from self._produce(iterator, stream)

    def _new_stream(self, seed: int) -> Any:
        return SavedStream(seed, randomness.generators_in(self._items))

    def _produce(self, iterator: Iterator[Any], stream: Stream) -> Iterator[Any]:
        began, spent = time.monotonic(), 0.0
        for number in itertools.count(1):
            began = time.monotonic()
            with stream.active():
                item = next(iterator, _END)
            if item is _END:
                return
            spent += time.monotonic() - began
            self.pace = spent / number
            yield item

    def _skip(self, iterator: Iterator[Any], stream: Stream, count: int) -> bool:
        """Produce batches and throw them away. False if there were fewer."""
        kind, began, patient = type(self._items).__name__, time.monotonic(), True
        cost = "" if self.pace is None else ", about %.0f s" % (self.pace * count)
        self._tell("%s cannot start in the middle: producing %d batches again to skip them%s" % (kind, count, cost))
        for done in range(1, count + 1):
            with stream.active():
                if next(iterator, _END) is _END:
                    self._tell("%s has only %d batches, and %d were done when it was saved" % (kind, done - 1, count))
                    return False
            spent = time.monotonic() - began
            if patient and spent > _PATIENCE:
                patient = False
                text = "skipped %d batches so far; about %.0f s to go (with state_dict() and load_state_dict(), none)"
                self._tell(text % (done, spent / done * (count - done)))
        self._tell("skipped %d batches in %.1f s" % (count, time.monotonic() - began))
        return True


class SavedStream(Stream):
    """A stream of random numbers that can be continued in another process."""

    def state(self) -> Dict[str, Any]:
        return {"global": self._state, "own": list(self._own_states)}

    def resume(self, state: Dict[str, Any]) -> None:
        if len(state["own"]) == len(self._own):
            self._state, self._own_states = state["global"], list(state["own"])


_END = object()
