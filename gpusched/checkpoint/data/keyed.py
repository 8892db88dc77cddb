"""Order and samples of a map-style DataLoader as functions of (seed, epoch, place in the epoch).

The sampler hands out keys (seed of the sample, index); the wrapped dataset seeds python, numpy and torch from the key
before it fetches the sample. So nothing has to be remembered between epochs or processes, and a loader with 0, 1 or 5
workers gives the same bits. (The idea and its measurements are in the project's checkpointing notes, section 2.)
Imported only where a DataLoader was given: this is the one module here that imports torch on its own import.
"""

from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch.utils.data import (
    BatchSampler,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import Stream, mix

Key = Tuple[int, Any]


class KeyedDataset(Dataset[Any]):
    """The user's dataset, asked by key: each sample's random transforms start from the sample's own seed.

    That covers the global generators and those that the dataset and its transforms hold.
    """

    def __init__(self, dataset: Any, calm: bool) -> None:
        self.dataset, self.calm = dataset, calm
        self.own = [] if calm else randomness.generators_in(dataset)

    def __getitem__(self, key: Key) -> Any:
        seed, index = key
        if self.calm:
            return self.dataset[index]
        randomness.seed_everything(seed)
        if not self.own:
            return self.dataset[index]
        with randomness.lent(self.own, seed):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # worker_init_fn may look at the dataset's attributes; special names would break unpickling
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class KeyedBatchDataset(KeyedDataset):
    """A dataset that fetches whole batches by __getitems__: one seed per batch, that of its first sample."""

    def __getitems__(self, keys: List[Key]) -> Any:
        indices = [index for _, index in keys]
        if self.calm or not keys:
            return self.dataset.__getitems__(indices)
        randomness.seed_everything(keys[0][0])
        with randomness.lent(self.own, keys[0][0]):
            return self.dataset.__getitems__(indices)


def wrap(dataset: Any, calm: bool) -> KeyedDataset:
    """Subset has __getitems__ but only hands on to its dataset's, if that has one: then single samples do as well."""
    inner = dataset
    while type(inner) is Subset:
        inner = inner.dataset
    return (KeyedBatchDataset if hasattr(inner, "__getitems__") else KeyedDataset)(dataset, calm)


def draws_nothing(loader: Any) -> bool:
    """Whether fetching surely draws no random numbers, so that seeding each sample can be saved."""
    inner = loader.dataset
    while type(inner) is Subset:
        inner = inner.dataset
    return type(inner) is TensorDataset and loader.collate_fn is default_collate


class Permutation:
    """The standard samplers: in order or shuffled without replacement. Starts anywhere at once."""

    def __init__(self, count: int, shuffle: bool, salt: int, batch_size: Optional[int], drop_last: bool) -> None:
        self._count, self._shuffle, self._salt = count, shuffle, salt
        self._batch_size, self._drop_last = batch_size, drop_last
        self._seed = self._start = 0

    def aim(self, seed: int, start: int) -> None:
        """Choose the epoch's seed and the first batch (sample, for a loader that does not make batches)."""
        self._seed, self._start = mix(seed, self._salt) if self._salt else seed, start

    def length(self) -> int:
        size = self._batch_size or 1
        return self._count // size if self._drop_last else -(-self._count // size)

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[Any]:
        size, seed = self._batch_size or 1, self._seed
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self._count, generator=generator) if self._shuffle else torch.arange(self._count)
        for batch in range(self._start, self.length()):
            first = batch * size
            indices = order[first : first + size].tolist()
            keys = [(mix(seed, first + offset), index) for offset, index in enumerate(indices)]
            yield keys if self._batch_size else keys[0]


class Sampled:
    """Any other sampler: run under the epoch's own seed, its first indices skipped without loading their samples."""

    def __init__(self, sampler: Any, batches: bool) -> None:
        self._sampler, self._batches = sampler, batches
        self._layers = [sampler, getattr(sampler, "sampler", None)]
        self._own = randomness.generators_in(sampler, depth=3)
        self._salts = [one.initial_seed() for one in self._own if hasattr(one, "initial_seed")]
        self._seed = self._start = 0

    def aim(self, seed: int, start: int) -> None:
        self._seed, self._start = mix(seed, *self._salts), start

    def length(self) -> Optional[int]:
        try:
            return len(self._sampler)
        except TypeError:
            return None

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        seed, start, place = self._seed, self._start, 0
        for layer in self._layers:
            if hasattr(layer, "set_epoch"):
                layer.set_epoch(seed & 0x7FFFFFFF)
        stream = Stream(seed, self._own)
        with stream.active():
            iterator: Iterator[Any] = iter(self._sampler)
        number = 0
        while True:
            with stream.active():
                item: Any = next(iterator, _END)
            if item is _END:
                return
            indices: List[Any] = list(item) if self._batches else [item]
            if number >= start:
                keys = [(mix(seed, place + offset), index) for offset, index in enumerate(indices)]
                yield keys if self._batches else keys[0]
            number, place = number + 1, place + len(indices)


_END = object()


def order_of(loader: Any, tell: Callable[[str], None]) -> Any:
    """The order in which a loader's samples are visited; says what an unknown sampler cannot promise."""
    if not getattr(loader, "in_order", True):
        tell("in_order=False is not honoured: the order of batches would be left to chance")
    batch_sampler = loader.batch_sampler
    sampler: Any = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
    standard = batch_sampler is None or type(batch_sampler) is BatchSampler
    shuffled = type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(loader.dataset)
    if standard and (shuffled or type(sampler) is SequentialSampler):
        generator = getattr(sampler, "generator", None)
        salt = generator.initial_seed() if generator is not None else 0
        size = None if batch_sampler is None else batch_sampler.batch_size
        drop = batch_sampler is not None and batch_sampler.drop_last
        return Permutation(len(sampler), shuffled, salt, size, drop)
    known = type(sampler).__module__.startswith("torch.utils.data") and standard
    if not known:
        odd = type(sampler if standard else batch_sampler).__name__
        tell("%s is run with a seed per epoch; what it remembers from epoch to epoch is not saved" % odd)
    return Sampled(loader.sampler if batch_sampler is None else batch_sampler, batch_sampler is not None)
