"""Iterables that know their place by state_dict() and load_state_dict(), as torchdata and Hugging Face have them.

When a state is taken: while the script works on a batch, so after the next() that gave it and before the one that gives
the following. It must then say "this batch has been given": an iterable written as a generator has to count *before*
its yield, not behind it. torchdata's StatefulDataLoader keeps that promise for its workers, who are further ahead.

What has no usable state is replayed. That holds for a StatefulDataLoader over a dataset without state as well:
torchdata would skip batches itself, but loses some when the same epoch is resumed a second time.
Must not import torch unless a DataLoader was given.
"""

import copy
import sys
from typing import Any, Dict, Iterator, Optional

from gpusched.checkpoint.data.replayed import Replayed, Tell
from gpusched.checkpoint.errors import CheckpointError


class Stateful(Replayed):
    """An iterable with a state of its own; `keeper` is who has it: the iterable itself, or a loader's dataset."""

    def __init__(self, items: Any, keeper: Any, tell: Tell) -> None:
        super().__init__(items, tell)
        self._keeper, self._name = keeper, type(keeper).__name__
        self._running = False
        self._refused = False

    def state(self) -> Optional[Dict[str, Any]]:
        """Where it is, after the batch that was handed out last; None outside a loop, and if it cannot be stored."""
        if not self._running or self._refused:
            return None
        stream = self._stream.state()
        with self._stream.active():  # it may look at the following item
            inner = copy.deepcopy(self._keeper.state_dict())
        state = {"inner": inner, "stream": stream}
        return state if self._can_be_stored(state) else None

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        self._running = True
        try:
            if state is None:
                yield from super().iterate(seed, start)
            else:
                self._stream = self._new_stream(seed)
                self._load(state["inner"])
                with self._stream.active():  # an iterator draws when it is made, as it did at the epoch's beginning
                    iterator = iter(self._items)
                self._stream.resume(state["stream"])
                yield from self._produce(iterator, self._stream)
        finally:
            self._running = False

    def _load(self, state: Any) -> None:
        try:
            self._keeper.load_state_dict(state)
        except Exception as error:
            raise CheckpointError(
                "%s could not continue from its saved state: %s: %s" % (self._name, type(error).__name__, error),
                "Resume with the data it was saved with, or start a new run.",
            ) from error

    def _can_be_stored(self, state: Any) -> bool:
        from gpusched.checkpoint.disk import plain

        try:
            plain.encode(state, {}, "loader")
        except CheckpointError as error:
            self._refused = True
            self._tell("%s A resume in mid-epoch will replay its batches instead." % error.message)
            return False
        return True


class _Place:
    """The state of a stream that is read in this process."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def state_dict(self) -> Any:
        return self._stream.newest.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._stream.pending = state


class StatefulDataset(Stateful):
    """A plain DataLoader without workers over an IterableDataset that has a state."""

    def __init__(self, loader: Any, tell: Tell) -> None:
        from gpusched.checkpoint.data import streams
        from gpusched.checkpoint.data.exact import options_of

        self._seeded = streams.SeededStream(loader.dataset)
        copy_of = sys.modules["torch.utils.data"].DataLoader
        options = dict(options_of(loader), batch_size=loader.batch_size, drop_last=loader.drop_last)
        super().__init__(copy_of(self._seeded, **options), _Place(self._seeded), tell)
        self._name = type(loader.dataset).__name__

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        self._seeded.seed = seed
        yield from super().iterate(seed, start, state)


class StatefulLoader(Stateful):
    """torchdata's StatefulDataLoader over an IterableDataset, whose items get seeds of their own."""

    def __init__(self, loader: Any, tell: Tell) -> None:
        from gpusched.checkpoint.data import streams
        from gpusched.checkpoint.data.exact import options_of

        self._original, self._options = loader, options_of(loader)
        if self._options.pop("persistent_workers"):
            tell("persistent_workers is switched off for an iterable dataset, so that a resume gives the same samples")
        pipe = sys.modules["torch.utils.data"].IterDataPipe
        self._seeded = None if isinstance(loader.dataset, pipe) else streams.SeededStream(loader.dataset)
        self._complete = streams.complete
        self._loader = self._build(loader.num_workers)
        super().__init__(self._loader, self._loader, tell)

    def _build(self, workers: int) -> Any:
        loader, options = self._original, dict(self._options, num_workers=workers)
        if workers == 0:
            options.pop("prefetch_factor", None)
            options.pop("multiprocessing_context", None)
        every = {"snapshot_every_n_steps": loader.snapshot_every_n_steps}
        data = loader.dataset if self._seeded is None else self._seeded
        return type(loader)(data, batch_size=loader.batch_size, drop_last=loader.drop_last, **options, **every)

    def state(self) -> Optional[Dict[str, Any]]:
        if not self._running or self._refused:
            return None
        with self._stream.active():
            inner = copy.deepcopy(self._items.state_dict())
        if not self._complete(inner):  # a dataset without state: replay it
            return None
        state = {"inner": inner, "workers": self._items.num_workers, "stream": self._stream.state()}
        return state if self._can_be_stored(state) else None

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        if self._seeded is not None:
            self._seeded.seed = seed
        self._items = self._keeper = self._loader
        if state is not None and state["workers"] != self._loader.num_workers:
            self._tell(
                "this epoch was begun with %d workers, and a stream is divided among its workers: it is finished with "
                "%d, the next one has %d" % (state["workers"], state["workers"], self._loader.num_workers)
            )
            self._items = self._keeper = self._build(state["workers"])
        yield from super().iterate(seed, start, state)
