"""Where batches come from, and how each kind of source starts in the middle of an epoch.

    PlainSequence    range, list, tuple           by index, nothing is loaded twice
    KeyedLoader      DataLoader over a dataset    by index; each sample seeded from (seed, epoch, its place in the
                     with __getitem__             epoch), so transforms may draw random numbers, with any number of
                                                  workers, and any number of ranks under a DistributedSampler
    Stateful         what has state_dict() and    its own state, as of the batch handed out last
                     load_state_dict()
    Replayed         everything else              the batches already done are produced again and thrown away

All of them draw from streams of their own and leave the script's generators untouched, whatever the number of workers.
A source has `length()` (global batches of an epoch, None if nobody knows; it may be an estimate, unless the source
`ends_at_length`), `global_batch()` (samples that all ranks
together take in one step, None where that means nothing), `pace` (seconds that a batch took, where a resume would have
to replay it), `identity()` (what must not change between a save and its
resume; a plain dictionary), `state()` (plain; None unless it is needed to start in the middle) and
`iterate(seed, start, state)`. `logical` says that each item is a list: the batches of this process's logical ranks.
Must not import torch unless the script gave a DataLoader.
"""

import itertools
import sys
from typing import Any, Dict, Iterator, List, Optional

from gpusched.checkpoint.data.clocks import Aim
from gpusched.checkpoint.data.replayed import Replayed, Tell
from gpusched.checkpoint.data.shape import ONE, Shape
from gpusched.checkpoint.data.stateful import Stateful, StatefulDataset, StatefulLoader
from gpusched.checkpoint.errors import CheckpointError

__all__ = ["KeyedLoader", "PlainSequence", "Replayed", "Stateful", "source_for"]


class PlainSequence:
    """Items of a range, list or tuple in their order."""

    logical, ends_at_length = False, True
    pace: Optional[float] = None

    def __init__(self, items: Any) -> None:
        self._items = items

    def length(self) -> Optional[int]:
        return len(self._items)

    def identity(self) -> Dict[str, Any]:
        """A range may grow: that is a longer training. A list that changes is other data."""
        return {} if isinstance(self._items, range) else {"length": len(self._items)}

    def global_batch(self) -> Optional[int]:
        return None

    def state(self) -> Any:
        return None

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        for index in range(start, len(self._items)):
            yield self._items[index]


class KeyedLoader:
    """A copy of a map-style DataLoader whose sampler hands out (seed, index) pairs and starts where it is told to."""

    ends_at_length = True
    pace: Optional[float] = None

    def __init__(self, loader: Any, tell: Tell, shape: Shape = ONE) -> None:
        import torch

        from gpusched.checkpoint.data import choosing, keyed, orders
        from gpusched.checkpoint.data.exact import options_of

        self._aim = Aim()
        self._order = choosing.order_of(loader, self._aim, tell, shape)
        self.logical = shape.logical is not None
        calm = keyed.draws_nothing(loader.dataset, loader.collate_fn)
        options = dict(options_of(loader), collate_fn=keyed.collated)
        if loader.batch_sampler is None:
            options.update(batch_size=None, sampler=self._order)
        else:
            options["batch_sampler"] = orders.Batches(self._order)
        # its own generator: iter() would otherwise draw the workers' base seed from the script's stream
        self._loader: Any = torch.utils.data.DataLoader(
            keyed.wrap(loader.dataset, calm, loader.collate_fn),
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        if self.length() == 0:
            tell(
                "this loader gives no batch at all: %s samples, %s in a global batch%s"
                % (self._order.samples, self.global_batch(), ", drop_last" if loader.drop_last else "")
            )

    def length(self) -> Optional[int]:
        return self._order.length()

    def global_batch(self) -> Optional[int]:
        return self._order.global_batch

    def identity(self) -> Dict[str, Any]:
        """The number of ranks and the batch size of each are free, as long as their product stays."""
        order = self._order
        found: Dict[str, Any] = {"order": order.kind, "samples": order.samples, "global batch": order.global_batch}
        found["logical ranks"] = order.split.parts if self.logical else None
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> Any:
        return None

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        self._aim.seed, self._aim.start = seed, start
        iterator = iter(self._loader)
        if not self.logical:
            yield from iterator
            return
        count = len(self._order.split.mine)
        while True:
            shares: List[Any] = list(itertools.islice(iterator, count))
            if not shares:
                return
            yield shares


def source_for(items: Any, tell: Tell, shape: Shape = ONE) -> Any:
    """The best source for what the script iterates over; says so where a resume will cost something.

    Raises CheckpointError for what cannot be shared out among logical ranks, or not be iterated over at all.
    """
    if isinstance(items, (range, list, tuple)):
        return PlainSequence(items)
    if not hasattr(items, "__iter__") and not hasattr(items, "__getitem__"):
        raise CheckpointError(
            "run.batches() was given a %s, which cannot be iterated over." % type(items).__name__,
            "Give it a DataLoader, a list, a range or any other iterable.",
        )
    data: Any = sys.modules.get("torch.utils.data")
    loader = data is not None and isinstance(items, data.DataLoader)
    exact = sys.modules.get("gpusched.checkpoint.data.exact")
    if exact is not None and isinstance(items, exact.ExactLoader):
        return KeyedLoader(items.plain, tell, shape)
    if loader and not _own_iteration(items, data) and not isinstance(items.dataset, data.IterableDataset):
        return KeyedLoader(items, tell, shape)
    if shape.logical is not None:
        raise CheckpointError(
            "%s cannot be shared out among logical ranks: its samples have no places." % type(items).__name__,
            "Logical ranks need a DataLoader over a dataset with __getitem__ and __len__.",
        )
    source = _streaming(items, tell, data if loader else None)
    source.ranks = shape.size
    return source


def _streaming(items: Any, tell: Tell, data: Any) -> Any:
    """What gives batches in its own way: by its state if it has one, else replayed."""
    if data is None:
        return Stateful(items, items, tell) if _has_state(items) else Replayed(items, tell)
    if _stateful(items):
        return StatefulLoader(items, tell)
    if _own_iteration(items, data):
        if _has_state(items):
            return Stateful(items, items, tell)
        tell("%s iterates in its own way: a resume in mid-epoch will replay its batches" % type(items).__name__)
        return Replayed(items, tell)
    if _has_state(items.dataset):
        if items.num_workers == 0:
            return StatefulDataset(items, tell)
        tell(
            "the dataset has a state, but the loader's workers have it: a resume in mid-epoch will replay its batches, "
            "unless you use torchdata's StatefulDataLoader (or num_workers=0)"
        )
    return Replayed(_without_persistence(items, tell), tell)


def _own_iteration(loader: Any, data: Any) -> bool:
    return type(loader).__iter__ is not data.DataLoader.__iter__ and not _stateful(loader)


def _stateful(loader: Any) -> bool:
    return type(loader).__module__.startswith("torchdata.stateful_dataloader")


def _has_state(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _without_persistence(loader: Any, tell: Tell) -> Any:
    """Workers that live on over epochs keep generators that a replay of one epoch cannot recreate."""
    import torch

    from gpusched.checkpoint.data.exact import options_of

    if not loader.persistent_workers:
        return loader
    tell("persistent_workers is switched off for an iterable dataset, so that a resume gives the same samples")
    options = dict(options_of(loader), persistent_workers=False)
    return torch.utils.data.DataLoader(
        loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, generator=loader.generator, **options
    )
