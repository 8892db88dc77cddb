"""A loader of the framework's, visited in an order that depends on nothing but (seed, epoch, place).

Frameworks call iter() and next() at moments of their own: early, once too often, one batch ahead. So a walk over the
batches begins at its first next(), asks then where it is, and draws nothing from the script's generators.
Must not import any framework, nor torch before the script does.
"""

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

from gpusched.checkpoint.data.sources import source_for
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.state.randomness import mix


@dataclass(frozen=True)
class Place:
    """Where a walk over a loader begins."""

    seed: int
    start: int = 0  # batches to leave out
    state: Any = None  # of a stateful source, after these batches


class FollowingLoader:
    """Stands for a loader: same length, same attributes; `where(self)` is asked at the first next() of every walk."""

    def __init__(self, loader: Any, source: Any, where: "Callable[[FollowingLoader], Place]") -> None:
        self.loader, self.source, self._where = loader, source, where

    def __len__(self) -> int:
        length = self.source.length()
        if length is None:
            raise TypeError("this loader has no length")
        return int(length)

    def __iter__(self) -> "Walk":
        return Walk(self, self._where)

    def __getattr__(self, name: str) -> Any:
        # the framework may look at the dataset or the batch size; it must not set up workers, which are not here
        if name.startswith("_") or name in ("loader", "source", "worker_init_fn", "set_epoch"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def state_dict(self) -> Any:
        """Nothing: where to start is asked for. That there is such a method tells Lightning that it can resume."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Walk:
    """One pass over a loader."""

    def __init__(self, loader: FollowingLoader, where: Callable[[FollowingLoader], Place]) -> None:
        self._loader, self._where = loader, where
        self._items: Optional[Iterator[Any]] = None
        self.handed = 0  # batches given out

    def __iter__(self) -> "Walk":
        return self

    def __next__(self) -> Any:
        if self._items is None:
            place = self._where(self._loader)
            self._items = iterate(self._loader.source, place)
        item = next(self._items)
        self.handed += 1
        return item


def iterate(source: Any, place: Place) -> Iterator[Any]:
    """The batches of a source from a place on."""
    return iter(source.iterate(place.seed, place.start, place.state))


def source_of(loader: Any, tell: Callable[[str], None]) -> Any:
    """The source for a loader of one process."""
    return source_for(loader, tell)


def stream_loader(source: Any, seed: int) -> Any:
    """A DataLoader that hands out a source's batches as they are, for frameworks that skip batches by themselves.

    Its `set_epoch` chooses the epoch; whoever builds another loader around its `dataset` gets the same batches.
    """
    import torch

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        epoch = 0

        def __iter__(self) -> Iterator[Any]:
            return iter(source.iterate(mix(seed, self.epoch), 0))

    class SizedStream(Stream):
        def __len__(self) -> int:
            return int(source.length())

    stream = Stream() if source.length() is None else SizedStream()
    loader: Any = torch.utils.data.DataLoader(stream, batch_size=None, collate_fn=_as_it_is)
    loader.set_epoch = lambda epoch: setattr(stream, "epoch", epoch)
    return loader


def _as_it_is(batch: Any) -> Any:
    return batch


def plain_loader(prepared: Any, rank: int = 0, size: int = 1) -> Any:
    """The torch DataLoader that accelerate has prepared, as it was before; among several ranks this rank's share of it.

    accelerate puts a shuffling of its own in, and cuts batches for its processes. Raises CheckpointError where the
    share of a rank cannot be told from outside.
    """
    import torch

    from gpusched.checkpoint.data.exact import options_of

    inner = vars(prepared).get("base_dataloader", prepared)
    batches: Any = inner.batch_sampler
    per_process = 1
    if type(batches).__name__ == "BatchSamplerShard":
        per_process, batches = batches.num_processes if batches.split_batches else 1, batches.batch_sampler
    sampler: Any = getattr(batches, "sampler", None)
    seedable = type(sampler).__name__ == "SeedableRandomSampler" and not sampler.replacement
    standard = seedable or type(sampler) in (torch.utils.data.RandomSampler, torch.utils.data.SequentialSampler)
    if type(batches) is torch.utils.data.BatchSampler and standard and len(sampler) == len(inner.dataset):
        shuffle = type(sampler) is not torch.utils.data.SequentialSampler
        options = dict(options_of(inner), batch_size=batches.batch_size // per_process, drop_last=batches.drop_last)
        if size == 1:
            return torch.utils.data.DataLoader(inner.dataset, shuffle=shuffle, **options)
        share: Any = torch.utils.data.DistributedSampler(
            inner.dataset, size, rank, shuffle, drop_last=batches.drop_last
        )
        return torch.utils.data.DataLoader(inner.dataset, sampler=share, **options)
    if size > 1:
        raise CheckpointError(
            "accelerate shares the batches of this loader (%s) among %d processes in its own way."
            % (type(sampler or batches or inner.dataset).__name__, size),
            "Give run.batches() a loader with a DistributedSampler that was not prepared by accelerate.",
        )
    return inner
