"""In which order samples are visited, as a function of (seed, place): what a DataLoader's sampler is replaced by.

An order hands out keys (seed of the sample, index). The *place* of a sample is its position in the whole epoch of all
ranks, and its seed depends on that place alone. Global batch k covers the places [k * G, (k + 1) * G) with
G = batch_size x parts; each part takes a contiguous slice of every global batch. So four ranks with batches of 8 and
two ranks with batches of 16 see the same global batches, with the same random transforms.

The last global batch is split evenly too. For that a data set whose length is no multiple of the number of parts is
padded with the first samples of the epoch's order (these few come twice, with random transforms of their own), or its
last few samples are left out where the DistributedSampler has drop_last. Only this padding depends on the number of
parts. Imports torch: import it where a DataLoader was given.
"""

from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.utils.data import DistributedSampler, Sampler

from gpusched.checkpoint.data.clocks import Clock
from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import Stream, mix

Key = Tuple[int, Any]


class Split(NamedTuple):
    """Into how many slices each global batch is cut, and which of them this process loads."""

    parts: int = 1
    mine: Tuple[int, ...] = (0,)
    pad: bool = True


class Batching(NamedTuple):
    """batch_size (None: single samples) and drop_last of a loader."""

    size: Optional[int]
    drop_last: bool


class Order(Sampler[Any]):
    """What all orders have in common: a sampler of keys for torch's BatchSampler, or of whole batches of keys."""

    clock: Any
    split: Split
    kind: str  # in words, for people and for comparing with a checkpoint
    samples: Optional[int]  # in an epoch of the data set, before padding
    global_batch: Optional[int]

    def batches(self) -> Iterator[List[Key]]:
        """The batches of keys that are left; one for each of the slices that this process loads, in turns."""
        raise NotImplementedError

    def length(self) -> Optional[int]:
        """Global batches in an epoch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Key]:
        for keys in self.batches():
            yield from keys

    def set_epoch(self, epoch: int) -> None:
        """For frameworks: passed on to a Timetable."""
        self.clock.set_epoch(epoch)


class Permutation(Order):
    """The standard samplers: in order or shuffled without replacement. Starts anywhere at once."""

    def __init__(self, clock: Clock, count: int, shuffle: bool, salt: int, batching: Batching, split: Split) -> None:
        self.clock, self.split = clock, split
        self.kind, self.samples = "shuffled" if shuffle else "in order", count
        self._shuffled, self._salt, self._batching = shuffle, salt, batching
        whole = count // split.parts * split.parts
        self._total = whole + split.parts if count > whole and split.pad else whole
        self.global_batch: int = (batching.size or 1) * split.parts

    def length(self) -> int:
        return self._total // self.global_batch if self._batching.drop_last else -(-self._total // self.global_batch)

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        total = self.length() * self.global_batch if self._batching.drop_last else self._total
        return total // self.split.parts * len(self.split.mine)

    def batches(self) -> Iterator[List[Key]]:
        seed, start = self.clock.begin()
        if self._salt:
            seed = mix(seed, self._salt)
        count, parts, size = self.samples or 0, self.split.parts, self.global_batch
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator) if self._shuffled else None  # in order needs no memory
        for first in range(start * size, self.length() * size, size):
            share = min(size, self._total - first) // parts
            for part in self.split.mine:
                begin = first + part * share
                places = torch.arange(begin, begin + share) % count  # beyond the end: padding from the front
                indices = (places if order is None else order[places]).tolist()
                yield [(mix(seed, begin + offset), index) for offset, index in enumerate(indices)]


class ShardedPermutation(Permutation, DistributedSampler[Any]):
    """The same for one rank of several. Frameworks see that it is distributed already and leave it as it is."""

    def __init__(self, clock: Clock, count: int, shuffle: bool, salt: int, batching: Batching, split: Split) -> None:
        Permutation.__init__(self, clock, count, shuffle, salt, batching, split)
        self.num_replicas, self.rank, self.epoch = split.parts, split.mine[0], 0
        self.shuffle, self.seed, self.drop_last = shuffle, salt, not split.pad
        self.num_samples, self.total_size = len(self), len(self) * split.parts

    __iter__ = Order.__iter__
    __len__ = Permutation.__len__

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.clock.set_epoch(epoch)


class Sampled(Order):
    """Any other sampler of samples: run under the epoch's own seed, its first indices skipped without loading them."""

    def __init__(self, clock: Clock, sampler: Any, batching: Batching, split: Split) -> None:
        self.clock, self.split = clock, split
        self.kind, self.samples = type(sampler).__name__, _length(sampler)
        self._sampler, self._batching = sampler, batching
        self._own = randomness.generators_in(sampler, depth=3)
        self._salts = _salts(self._own)
        # a sampler that shares out the samples among the ranks itself: their seeds must differ from rank to rank
        own_rank = getattr(sampler, "rank", None) if getattr(sampler, "num_replicas", 1) > 1 else None
        self._rank = [] if own_rank is None else ["rank", own_rank]
        self.global_batch: int = (batching.size or 1) * split.parts

    def length(self) -> Optional[int]:
        count, size = _length(self._sampler), self.global_batch
        if count is None:
            return None
        return count // size if self._batching.drop_last else -(-count // size)

    def __len__(self) -> int:
        count, parts = len(self._sampler), self.split.parts
        if self._batching.drop_last:
            return count // self.global_batch * (self._batching.size or 1)
        return (count + parts - 1) // parts

    def batches(self) -> Iterator[List[Key]]:
        seed, start = self.clock.begin()
        seed = mix(seed, *self._salts)
        first: List[Any] = []
        chunk: List[Any] = []
        number = 0
        for index in under_seed(self._sampler, [self._sampler], seed, self._own):
            if len(first) < self.split.parts:
                first.append(index)
            chunk.append(index)
            if len(chunk) == self.global_batch:
                if number >= start:
                    yield from self._cut(chunk, seed, number * self.global_batch)
                number, chunk = number + 1, []
        if chunk and not self._batching.drop_last and number >= start:
            spare = -len(chunk) % self.split.parts
            padding = (first * self.split.parts)[:spare]
            yield from self._cut(chunk + padding, seed, number * self.global_batch)

    def _cut(self, chunk: List[Any], seed: int, place: int) -> Iterator[List[Key]]:
        share = len(chunk) // self.split.parts
        for part in self.split.mine:
            begin = part * share
            slots = range(begin, begin + share)
            yield [(mix(seed, *self._rank, place + slot), chunk[slot]) for slot in slots]


class SampledBatches(Order):
    """A batch sampler of the user's own: run under the epoch's own seed, its first batches skipped unloaded."""

    def __init__(self, clock: Clock, batch_sampler: Any) -> None:
        self.clock, self.split, self.global_batch = clock, Split(), None
        self.kind, self.samples = type(batch_sampler).__name__, None
        self._inner = batch_sampler
        self._own = randomness.generators_in(batch_sampler, depth=3)
        self._salts = _salts(self._own)
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.drop_last = getattr(batch_sampler, "drop_last", False)

    @property
    def sampler(self) -> Any:
        """Frameworks set the epoch of `batch_sampler.sampler`: it is ours that must know."""
        return self

    def length(self) -> Optional[int]:
        return _length(self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self) -> Iterator[List[Key]]:
        seed, start = self.clock.begin()
        seed, place = mix(seed, *self._salts), 0
        layers = [self._inner, getattr(self._inner, "sampler", None)]
        for number, item in enumerate(under_seed(self._inner, layers, seed, self._own)):
            indices = list(item)
            if number >= start:
                yield [(mix(seed, place + offset), index) for offset, index in enumerate(indices)]
            place += len(indices)


class Batches:
    """An order as a batch sampler: what the loader of run.batches() is given."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __iter__(self) -> Iterator[List[Key]]:
        return self.order.batches()

    def __len__(self) -> int:
        length = self.order.length()
        if length is None:
            raise TypeError("this sampler has no length")
        return length * len(self.order.split.mine)


def under_seed(sampler: Any, layers: Sequence[Any], seed: int, own: Sequence[Any]) -> Iterator[Any]:
    """What a sampler gives when all that it draws from starts from this seed; nothing of it is seen outside."""
    for layer in layers:
        if hasattr(layer, "set_epoch"):
            layer.set_epoch(seed & 0x7FFFFFFF)
    stream = Stream(seed, own)
    with stream.active():
        iterator: Iterator[Any] = iter(sampler)
    while True:
        with stream.active():
            item = next(iterator, _END)
        if item is _END:
            return
        yield item


_END = object()


def _length(sampler: Any) -> Optional[int]:
    try:
        return len(sampler)
    except TypeError:
        return None


def _salts(generators: Sequence[Any]) -> List[int]:
    return [one.initial_seed() for one in generators if hasattr(one, "initial_seed")]
