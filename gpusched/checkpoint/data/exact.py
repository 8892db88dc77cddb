"""exact_loader: a DataLoader for loops that belong to somebody else (Lightning, Hugging Face, accelerate, your own).

Inside run.batches() none of this is needed. Must not know about runs or checkpoints: whoever owns the loop stores
state_dict() or skips batches in its own way. Imports torch: `gpusched.checkpoint.exact_loader` is imported lazily.
"""

import os
import sys
from typing import Any, Dict, Iterator, Optional

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from gpusched.checkpoint.data import keyed
from gpusched.checkpoint.data.choosing import is_torchs, order_of
from gpusched.checkpoint.data.clocks import Timetable
from gpusched.checkpoint.data.orders import SampledBatches
from gpusched.checkpoint.data.shape import Shape
from gpusched.checkpoint.errors import CheckpointError, say


def exact_loader(
    loader: "DataLoader[Any]", seed: Optional[int] = None, rank: Optional[int] = None, size: Optional[int] = None
) -> "ExactLoader":
    """A DataLoader over the same data whose batches depend only on (seed, epoch, place), random transforms included.

        loader = exact_loader(torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, num_workers=4), seed=1)
        for epoch in range(start, 3):
            loader.set_epoch(epoch)         # or leave it out: every pass is the next epoch
            for batch in loader:
                ...                         # here loader.state_dict() says: these batches were handed out

    So it resumes in the middle of an epoch, exactly and without loading anything again, with any number of workers:
    by load_state_dict() before the next pass, or because somebody builds another loader around its `dataset` and
    `batch_sampler` that leaves the first batches out (accelerate.skip_first_batches, and so Hugging Face's Trainer).
    The script's own random numbers are not touched by loading. The order is another than that of the loader given.

    seed: default, in a single process torch's initial seed; among several ranks the DistributedSampler's seed or 0,
    since it has to be the same on all of them. rank, size: hand out this rank's slice of each global batch of
    batch_size x size samples; default: as the loader's DistributedSampler says, else everything. (accelerate
    and Trainer share out the batches themselves: leave rank and size away.)

    `state_dict()` is a dictionary of numbers. `load_state_dict()` raises CheckpointError if the data set has another
    length now, or if the place is not the beginning of a batch of the present size.
    Raises CheckpointError for an IterableDataset (it has no places) and for loaders that iterate in a way of their own.
    """
    if isinstance(loader, ExactLoader):
        return loader.again(seed, rank, size)
    if not isinstance(loader, DataLoader):
        raise CheckpointError(
            "exact_loader() takes a torch DataLoader, not a %s." % type(loader).__name__,
            "Wrap the data in torch.utils.data.DataLoader(dataset, …) first.",
        )
    if isinstance(loader.dataset, IterableDataset):
        raise CheckpointError(
            "exact_loader() needs a dataset with __getitem__; an IterableDataset has no places to start from.",
            "Use run.batches(loader), which saves such a dataset's state or replays it.",
        )
    own = type(loader).__iter__ is not DataLoader.__iter__
    if own and not type(loader).__module__.startswith("torchdata.stateful_dataloader"):
        raise CheckpointError(
            "%s iterates in its own way, which exact_loader() cannot reproduce." % type(loader).__name__,
            "Give it the plain torch DataLoader, before it is wrapped.",
        )
    order: Dict[str, Any] = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    if loader.batch_sampler is None:
        order = {"batch_size": None, "sampler": loader.sampler}
    elif not is_torchs(loader.batch_sampler, BatchSampler):
        order = {"batch_sampler": loader.batch_sampler}
    return ExactLoader(loader.dataset, seed=seed, rank=rank, size=size, **order, **options_of(loader))


class ExactLoader(DataLoader[Any]):
    """A DataLoader that is built like any other and has exact_loader()'s properties; frameworks may rebuild it."""

    def __init__(
        self,
        dataset: Any,
        *args: Any,
        seed: Optional[int] = None,
        rank: Optional[int] = None,
        size: Optional[int] = None,
        **options: Any,
    ) -> None:
        if isinstance(dataset, keyed.KeyedDataset):  # rebuilt from the attributes of one of us
            if options.get("collate_fn") is keyed.collated:
                options["collate_fn"] = dataset.collate
            dataset = dataset.dataset
        plain: Any = DataLoader(dataset, *args, **options)
        self._plain, self._given = plain, {"seed": seed, "rank": rank, "size": size}
        self._clock = Timetable(_seed_for(plain, seed, size))
        ours = size is not None
        order = order_of(plain, self._clock, say, Shape(rank or 0, size or 1), ours)
        calm = keyed.draws_nothing(dataset, plain.collate_fn)
        data = keyed.wrap(dataset, calm, plain.collate_fn, self._clock)
        rest = dict(options_of(plain), collate_fn=keyed.collated)
        # its own generator: iter() would otherwise draw the workers' base seed from the script's stream
        rest["generator"] = torch.Generator().manual_seed(0)
        if isinstance(order, SampledBatches):
            super().__init__(data, batch_sampler=order, **rest)
        else:
            super().__init__(data, batch_size=plain.batch_size, sampler=order, drop_last=plain.drop_last, **rest)
        self.seed, self.rank, self.size = seed, rank, size
        self._order = order
        self._place: Optional[_Place] = None  # of the newest pass, until it is over

    def again(self, seed: Optional[int], rank: Optional[int], size: Optional[int]) -> "ExactLoader":
        """The same loader with another seed or share."""
        given = {"seed": seed, "rank": rank, "size": size}
        mixed = {name: self._given[name] if value is None else value for name, value in given.items()}
        return exact_loader(self._plain, **mixed)

    @property
    def plain(self) -> "DataLoader[Any]":
        """The loader as it would be without exactness."""
        return self._plain  # type: ignore[no-any-return]

    def set_epoch(self, epoch: int) -> None:
        """The next pass is over this epoch. A place in this very epoch that was loaded before is kept."""
        self._clock.set_epoch(epoch)

    def state_dict(self) -> Dict[str, Any]:
        """Seed, epoch and how many batches of it were handed out; after the end of a pass, the next epoch's start."""
        epoch, batch = self._clock.due() if self._place is None else (self._place.epoch, self._place.batch)
        where = {"seed": self._clock.seed, "epoch": epoch, "batch": batch}
        return dict(where, samples=self._order.samples, global_batch=self._order.global_batch)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Make the next pass go on where state_dict() was taken. See exact_loader() for what it raises."""
        if state["samples"] != self._order.samples:
            raise CheckpointError(
                "The data set had %s samples when this place was saved and has %s now: the order is another one."
                % (state["samples"], self._order.samples),
                "Resume with the data set it was saved with, or start a new run.",
            )
        batch, before, now = state["batch"], state["global_batch"], self._order.global_batch
        if before != now and batch:
            if not before or not now or batch * before % now:
                raise CheckpointError(
                    "Batch %s of %s samples is not the beginning of a batch of %s samples." % (batch, before, now),
                    "Keep batch size x ranks as it was until the end of this epoch.",
                )
            batch = batch * before // now
        clock = self._clock
        clock.seed, clock.epoch, clock.start = int(state["seed"]), int(state["epoch"]), int(batch)
        clock.begun = clock.touched = False
        self._place = None

    def __iter__(self) -> Any:
        self._place = _Place(*self._clock.due())
        return _Pass(self, super().__iter__(), self._place)

    def moved(self, place: "_Place", over: bool) -> None:
        """For a pass: it has handed out a batch, or is over."""
        if self._place is place:  # not so for a pass that was left for a newer one
            self._clock.touch(place.epoch)
            self._place = None if over else place


class _Place:
    """An epoch and how many of its batches were handed out (which is less than what workers have prefetched)."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch


class _Pass(Iterator[Any]):
    """The iterator over one epoch. The loader does not hold it: a pass that is given up must end its workers."""

    def __init__(self, loader: ExactLoader, inner: Iterator[Any], place: _Place) -> None:
        self._loader, self._inner, self._place = loader, inner, place

    def __next__(self) -> Any:
        try:
            batch = next(self._inner)
        except StopIteration:
            self._loader.moved(self._place, over=True)
            raise
        self._place.batch += 1
        self._loader.moved(self._place, over=False)
        return batch


def options_of(loader: Any) -> Dict[str, Any]:
    """The options that do not concern order. in_order stays true: otherwise the order of batches is left to chance."""
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "persistent_workers"]
    options = {name: getattr(loader, name) for name in names}
    if loader.num_workers > 0:
        options["prefetch_factor"] = loader.prefetch_factor
        options["multiprocessing_context"] = loader.multiprocessing_context
    if getattr(loader, "pin_memory_device", ""):
        options["pin_memory_device"] = loader.pin_memory_device
    return options


def _seed_for(plain: Any, seed: Optional[int], size: Optional[int]) -> int:
    """Ranks often have torch seeds of their own, and must agree on the order all the same."""
    if seed is not None:
        return seed
    sampler = plain.sampler
    if isinstance(sampler, DistributedSampler) or (size or 1) > 1 or _processes() > 1:
        return int(getattr(sampler, "seed", 0))
    return int(torch.initial_seed())


def _processes() -> int:
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size())
    ranks = os.environ.get("WORLD_SIZE", "1")
    return int(ranks) if ranks.isdigit() else 1
