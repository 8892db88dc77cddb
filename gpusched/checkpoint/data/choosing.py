"""Which order a loader's sampler is replaced by, and among whom its samples are shared out.

Imports torch: import it where a DataLoader was given.
"""

from typing import Any, Optional

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from gpusched.checkpoint.data.orders import (
    Batching,
    Order,
    Permutation,
    Sampled,
    SampledBatches,
    ShardedPermutation,
    Split,
)
from gpusched.checkpoint.data.shape import ONE, Shape
from gpusched.checkpoint.errors import CheckpointError


def order_of(loader: Any, clock: Any, tell: Any, shape: Shape = ONE, ours: bool = False) -> Order:
    """The order in which a loader's samples are visited; says what an unknown sampler cannot promise.

    A DistributedSampler says by itself among how many ranks it shares the samples (that can be fewer than there are
    processes, with a mesh). `ours`: share them among the `shape.size` processes whatever the sampler is.
    """
    if not getattr(loader, "in_order", True):
        tell("in_order=False is not honoured: the order of batches would be left to chance")
    batch_sampler = loader.batch_sampler
    sampler: Any = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
    if batch_sampler is not None and not is_torchs(batch_sampler, BatchSampler):
        return _own_batches(batch_sampler, clock, tell, shape, ours)
    batching = Batching(None, False)
    if batch_sampler is not None:
        batching = Batching(batch_sampler.batch_size, batch_sampler.drop_last)
    distributed = is_torchs(sampler, DistributedSampler)
    split = _split(sampler if distributed else None, shape, ours)
    shuffled = is_torchs(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(loader.dataset)
    if shuffled and shape.size > 1 and split.parts == 1:
        tell(
            "each of the %d ranks will visit the same samples: give the loader a DistributedSampler, unless that is "
            "what you want" % shape.size
        )
    if distributed or shuffled or type(sampler) is SequentialSampler:
        count = len(sampler.dataset if distributed else sampler)
        shuffle = bool(sampler.shuffle) if distributed else shuffled
        # torchdata's has a generator always, of a chance seed where the script gave none
        generator = getattr(loader if _is_torchdatas(sampler) else sampler, "generator", None)
        salt = int(sampler.seed) if distributed else generator.initial_seed() if generator is not None else 0
        kind = ShardedPermutation if split.parts > 1 and shape.logical is None else Permutation
        return kind(clock, count, shuffle, salt, batching, split)
    if not type(sampler).__module__.startswith("torch.utils.data"):
        _warn_of(sampler, tell)
    return Sampled(clock, sampler, batching, split)


def is_torchs(sampler: Any, kind: Any) -> bool:
    """Whether this is torch's own sampler of that kind, or torchdata's, which differs in having a state."""
    own = type(sampler)
    return own is kind or (_is_torchdatas(sampler) and own.__name__ in (kind.__name__, "Stateful" + kind.__name__))


def _is_torchdatas(sampler: Any) -> bool:
    return type(sampler).__module__.startswith("torchdata.stateful_dataloader")


def _split(sampler: Optional[DistributedSampler[Any]], shape: Shape, ours: bool) -> Split:
    pad = sampler is None or not sampler.drop_last
    if shape.logical is not None:
        return Split(shape.logical, shape.mine, pad)
    if ours:
        return Split(shape.size, (shape.rank,), pad)
    return Split() if sampler is None else Split(sampler.num_replicas, (sampler.rank,), pad)


def _own_batches(batch_sampler: Any, clock: Any, tell: Any, shape: Shape, ours: bool) -> Order:
    if shape.logical is not None or (ours and shape.size > 1):
        raise CheckpointError(
            "The batches of %s cannot be cut for several ranks: what a batch is, is up to it."
            % type(batch_sampler).__name__,
            "Give the loader a sampler= and a batch_size= instead of a batch_sampler=.",
        )
    _warn_of(batch_sampler, tell)
    return SampledBatches(clock, batch_sampler)


def _warn_of(sampler: Any, tell: Any) -> None:
    name = type(sampler).__name__
    tell("%s is run with a seed per epoch; what it remembers from epoch to epoch is not saved" % name)
