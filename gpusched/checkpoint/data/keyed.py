"""A map-style dataset that is asked by key: (seed of the sample, index).

The seed restarts every generator that the sample's random transforms may draw from, so that a sample depends on its key
alone: nothing has to be remembered between epochs or processes, and a loader with 0, 1 or 5 workers gives the same
bits. (The idea and its measurements are in the project's checkpointing notes, section 2.) Batches are collated in here
as well, still under the seed of their last sample: collate functions draw random numbers too. In the training process
itself (a loader without workers) the script's own generators are put back after every batch.
Imports torch: import it where a DataLoader was given.
"""

import contextlib
from typing import Any, Callable, List, Optional, Tuple

from torch.utils.data import Dataset, Subset, TensorDataset, default_collate, get_worker_info

from gpusched.checkpoint.state import randomness

Key = Tuple[int, Any]


class KeyedDataset(Dataset[Any]):
    """The user's dataset, asked by key: a key gives a sample, a list of keys a collated batch.

    The seeds reach the global generators and those that the dataset, its transforms and the collate function hold.
    """

    def __init__(self, dataset: Any, calm: bool, collate: Optional[Callable[[Any], Any]], clock: Any = None) -> None:
        self.dataset, self.calm, self.collate, self.clock = dataset, calm, collate, clock
        self.own = [] if calm else randomness.generators_in(dataset)

    def __getitem__(self, key: Key) -> Any:
        with self._guard():
            sample = self._sample(key)
            return sample if self.collate is None else self._collated(sample, key[0])

    def __getitems__(self, keys: List[Key]) -> Any:
        with self._guard():
            samples = self._samples(keys)
            return samples if self.collate is None else self._collated(samples, keys[-1][0] if keys else 0)

    def _guard(self) -> Any:
        """In the training process, what is drawn and seeded here must leave no trace; a worker is ours alone."""
        alone = self.calm or get_worker_info() is not None
        return contextlib.nullcontext() if alone else randomness.undisturbed()

    def _sample(self, key: Key) -> Any:
        seed, index = key
        if self.calm:
            return self.dataset[index]
        randomness.seed_everything(seed)
        if not self.own:
            return self.dataset[index]
        with randomness.lent(self.own, seed):
            return self.dataset[index]

    def _samples(self, keys: List[Key]) -> Any:
        return [self._sample(key) for key in keys]

    def _collated(self, samples: Any, seed: int) -> Any:
        """The collate function goes on with the generators of the last sample, and with its own from the seed."""
        assert self.collate is not None
        if self.calm or not getattr(self.collate, "__dict__", None):
            return self.collate(samples)
        own = randomness.generators_in(self.collate, depth=3)
        with randomness.lent(own, seed):
            before = randomness.capture(devices=False)
            batch = self.collate(samples)
        born = randomness.generators_in(self.collate, depth=3)
        if len(born) == len(own):
            return batch
        # its own generator was made by this first call (as language-model collators do), and drawn from: once more
        randomness.restore(before)
        with randomness.lent(born, seed):
            return self.collate(samples)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Frameworks tell the dataset its epoch where they cannot reach the sampler; both want to know."""
        if self.clock is not None:
            self.clock.set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        # worker_init_fn may look at the dataset's attributes; special names would break unpickling
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class KeyedBatchDataset(KeyedDataset):
    """A dataset that fetches whole batches by __getitems__: one seed per batch, that of its first sample."""

    def _samples(self, keys: List[Key]) -> Any:
        indices = [index for _, index in keys]
        if self.calm or not keys:
            return self.dataset.__getitems__(indices)
        randomness.seed_everything(keys[0][0])
        with randomness.lent(self.own, keys[0][0]):
            return self.dataset.__getitems__(indices)


def wrap(dataset: Any, calm: bool, collate: Optional[Callable[[Any], Any]] = None, clock: Any = None) -> KeyedDataset:
    """Subset has __getitems__ but only hands on to its dataset's, if that has one: then single samples do as well."""
    inner = dataset
    while type(inner) is Subset:
        inner = inner.dataset
    kind = KeyedBatchDataset if hasattr(inner, "__getitems__") else KeyedDataset
    return kind(dataset, calm, collate, clock)


def draws_nothing(dataset: Any, collate: Any) -> bool:
    """Whether fetching surely draws no random numbers, so that seeding each sample can be saved."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) is TensorDataset and collate is default_collate


def collated(batch: Any) -> Any:
    """The collate function of a loader whose dataset hands out collated batches."""
    return batch
