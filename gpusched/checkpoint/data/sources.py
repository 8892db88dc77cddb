"""Where batches come from, and how each kind of source starts in the middle of an epoch.

    PlainSequence   range, list, tuple          by index, nothing is loaded twice
    KeyedLoader     DataLoader over a dataset   by index; each sample seeded from (seed, epoch, its place in the epoch),
                    with __getitem__            so transforms may draw random numbers, with any number of workers
    Replayed        everything else             the batches already done are produced again and thrown away

All of them draw from streams of their own and leave the script's generators untouched, whatever the number of workers.
Must not import torch unless the script gave a DataLoader.
"""

import itertools
import sys
import time
from typing import Any, Callable, Iterator, Optional

from gpusched.checkpoint.state.randomness import Stream, undisturbed

Tell = Callable[[str], None]


class PlainSequence:
    """Items of a range, list or tuple in their order."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def length(self) -> Optional[int]:
        return len(self._items)

    def iterate(self, seed: int, start: int) -> Iterator[Any]:
        for index in range(start, len(self._items)):
            yield self._items[index]


class Replayed:
    """An iterable that cannot start in the middle: produced again from the beginning under the epoch's own seed."""

    def __init__(self, items: Any, tell: Tell) -> None:
        self._items, self._tell = items, tell

    def length(self) -> Optional[int]:
        try:
            return len(self._items)
        except TypeError:
            return None

    def iterate(self, seed: int, start: int) -> Iterator[Any]:
        stream = Stream(seed)
        with stream.active():
            iterator = iter(self._items)
        began = time.monotonic()
        if start:
            kind = type(self._items).__name__
            self._tell("%s cannot start in the middle: producing %d batches again to skip them" % (kind, start))
        for index in itertools.count():
            with stream.active():
                item = next(iterator, _END)
            if item is _END:
                return
            if index + 1 == start:
                self._tell("skipped %d batches in %.1f s" % (start, time.monotonic() - began))
            if index >= start:
                yield item


_END = object()


class KeyedLoader:
    """A copy of a map-style DataLoader whose sampler hands out (seed, index) pairs and starts where it is told to."""

    def __init__(self, loader: Any, tell: Tell) -> None:
        import torch

        from gpusched.checkpoint.data import keyed

        self._order = keyed.order_of(loader, tell)
        calm = keyed.draws_nothing(loader)
        self._disturbs = loader.num_workers == 0 and not calm
        options = _options(loader)
        options["sampler" if loader.batch_sampler is None else "batch_sampler"] = self._order
        if loader.batch_sampler is None:
            options["batch_size"] = None
        # its own generator: iter() would otherwise draw the workers' base seed from the script's stream
        self._loader: Any = torch.utils.data.DataLoader(
            keyed.wrap(loader.dataset, calm), generator=torch.Generator().manual_seed(0), **options
        )

    def length(self) -> Optional[int]:
        length: Optional[int] = self._order.length()
        return length

    def iterate(self, seed: int, start: int) -> Iterator[Any]:
        self._order.aim(seed, start)
        iterator = iter(self._loader)
        while True:
            if self._disturbs:
                with undisturbed():
                    batch = next(iterator, _END)
            else:
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield batch


def source_for(items: Any, tell: Tell) -> Any:
    """The best source for what the script iterates over; says so where a resume will cost something."""
    if isinstance(items, (range, list, tuple)):
        return PlainSequence(items)
    data = sys.modules.get("torch.utils.data")
    if data is None or not isinstance(items, data.DataLoader):
        return Replayed(items, tell)
    own_iteration = type(items).__iter__ is not data.DataLoader.__iter__ and not _stateful(items)
    if own_iteration:
        tell("%s iterates in its own way: a resume in mid-epoch will replay its batches" % type(items).__name__)
        return Replayed(items, tell)
    if isinstance(items.dataset, data.IterableDataset):
        return Replayed(_without_persistence(items, tell), tell)
    return KeyedLoader(items, tell)


def _stateful(loader: Any) -> bool:
    return type(loader).__module__.startswith("torchdata.stateful_dataloader")


def _without_persistence(loader: Any, tell: Tell) -> Any:
    """Workers that live on over epochs keep generators that a replay of one epoch cannot recreate."""
    import torch

    if not loader.persistent_workers:
        return loader
    tell("persistent_workers is switched off for an iterable dataset, so that a resume gives the same samples")
    options = dict(_options(loader), persistent_workers=False)
    return torch.utils.data.DataLoader(
        loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, generator=loader.generator, **options
    )


def _options(loader: Any) -> Any:
    """The options that do not concern order. in_order stays true: otherwise the order of batches is left to chance."""
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "persistent_workers"]
    options = {name: getattr(loader, name) for name in names}
    if loader.num_workers > 0:
        options["prefetch_factor"] = loader.prefetch_factor
        options["multiprocessing_context"] = loader.multiprocessing_context
    if getattr(loader, "pin_memory_device", ""):
        options["pin_memory_device"] = loader.pin_memory_device
    return options
