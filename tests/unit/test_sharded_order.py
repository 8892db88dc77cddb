"""Ranks share one order: the same global batches on any number of them, with the same random transforms."""

import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, WeightedRandomSampler

from gpusched.checkpoint import CheckpointError
from gpusched.checkpoint.data.shape import Shape
from gpusched.checkpoint.data.sources import source_for


class Noisy(Dataset):
    def __init__(self, count=64):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, random.random(), float(torch.rand(()))


def quiet(sentence):
    pass


def rows(batch):
    return list(zip(*[column.tolist() for column in batch], strict=True))


def of_rank(rank, size, batch, start=0, count=64, tell=quiet, workers=0, **options):
    """The batches of one rank, from the middle of an epoch on; each a list of samples."""
    drop_last = options.pop("drop_batch", False)
    data = Noisy(count)
    sampler = DistributedSampler(data, size, rank, **options)
    loader = DataLoader(data, batch, sampler=sampler, drop_last=drop_last, num_workers=workers)
    source = source_for(loader, tell, Shape(rank, size))
    found = [rows(one) for one in source.iterate(5, start)]
    assert len(found) == source.length() - start
    return found


def of_all(size, batch, **options):
    """The global batches: those of the ranks put together."""
    ranks = [of_rank(rank, size, batch, **options) for rank in range(size)]
    assert len({len(one) for one in ranks}) == 1
    assert all(len({len(part) for part in parts}) == 1 for parts in zip(*ranks, strict=True))
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_do_not_depend_on_the_number_of_ranks(shuffle):
    one = of_all(1, 16, shuffle=shuffle)
    assert of_all(2, 8, shuffle=shuffle) == of_all(4, 4, shuffle=shuffle) == one
    assert sorted(index for batch in one for index, _, _ in batch) == list(range(64))
    assert (one[0][0][0] == 0) is not shuffle


def test_a_run_of_four_ranks_goes_on_with_two_and_with_workers():
    before, after = of_all(4, 4), of_all(2, 8, start=2, workers=1)
    assert after == before[2:]


@pytest.mark.parametrize("count, size, batch, sizes", [(23, 4, 2, [8, 8, 8]), (22, 4, 2, [8, 8, 8]), (3, 4, 2, [4])])
def test_a_data_set_that_does_not_divide_is_padded_from_the_front_of_its_order(count, size, batch, sizes):
    found = of_all(size, batch, count=count)
    assert [len(one) for one in found] == sizes
    order = [index for one in found for index, _, _ in one]
    assert sorted(order[:count]) == list(range(count)) and order[count:] == order[: len(order) - count]
    noise = [second for one in found for _, second, _ in one]
    assert len(set(noise)) == len(noise)  # a sample that comes twice is augmented in two ways


def test_the_tail_is_left_out_where_the_sampler_or_the_loader_says_so():
    found = of_all(4, 2, count=23, drop_last=True)
    assert [len(one) for one in found] == [8, 8, 4]
    assert len({index for one in found for index, _, _ in one}) == 20
    assert [len(one) for one in of_all(4, 2, count=23, drop_batch=True)] == [8, 8, 8]
    assert [len(one) for one in of_all(4, 2, count=20, drop_batch=True)] == [8, 8]


def test_the_samplers_seed_chooses_the_order():
    assert of_all(2, 8, seed=1) == of_all(4, 4, seed=1) != of_all(2, 8, seed=2)


def source(size, batch, count=64, **options):
    data = Noisy(count)
    return source_for(
        DataLoader(data, batch, sampler=DistributedSampler(data, size, 0, **options)), quiet, Shape(0, size)
    )


def test_what_must_not_change_is_the_product_of_ranks_and_batch_size():
    assert source(4, 8).identity() == source(2, 16).identity() != source(2, 8).identity()
    assert source(4, 8).global_batch() == 32
    assert source(4, 8).identity() != source(4, 8, count=65).identity()
    assert source(4, 8).identity() != source(4, 8, shuffle=False).identity()


def test_a_plain_shuffled_loader_gives_every_rank_the_same_and_says_so():
    told = []
    found = [source_for(DataLoader(Noisy(), 8, True), told.append, Shape(rank, 2)) for rank in (0, 1)]
    assert rows(next(found[0].iterate(1, 0))) == rows(next(found[1].iterate(1, 0)))
    assert "each of the 2 ranks will visit the same samples" in told[0] and "DistributedSampler" in told[0]
    told.clear()
    source_for(DataLoader(Noisy(), 8), told.append, Shape(0, 2))  # an evaluation, say
    assert told == []


def test_ranks_of_one_replica_see_the_same():
    """With a mesh there are fewer replicas than processes; the sampler knows."""
    data = Noisy()
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, 2, 1))
    first = [rows(one) for one in source_for(loader, quiet, Shape(2, 4)).iterate(5, 0)]
    assert first == of_rank(1, 2, 8)


def test_a_distributed_sampler_of_the_users_own_keeps_its_order_and_its_ranks_augment_differently():
    class Mine(DistributedSampler):
        def __iter__(self):
            return iter(range(8))

    told, noise = [], []
    for rank in (0, 1):
        data = Noisy(16)
        loader = DataLoader(data, 2, sampler=Mine(data, 2, rank))
        found = list(source_for(loader, told.append, Shape(rank, 2)).iterate(5, 1))
        assert found[-1][0].tolist()[-1] == 7
        noise += [number for batch in found for number in batch[1].tolist()]
    assert "Mine is run with a seed per epoch" in told[0]
    assert len(set(noise)) == len(noise)


def test_a_loader_without_a_single_batch_says_why():
    told = []
    loader = DataLoader(Noisy(5), 8, drop_last=True)
    assert list(source_for(loader, told.append).iterate(1, 0)) == []
    assert "gives no batch at all: 5 samples, 8 in a global batch, drop_last" in told[0]


def logical(rank, size, loader, start=0):
    source = source_for(loader, quiet, Shape(rank, size, 6))
    assert source.logical
    return [[rows(share) for share in shares] for shares in source.iterate(5, start)]


@pytest.mark.parametrize("kind", ["shuffled", "in order", "weighted"])
def test_logical_ranks_have_their_batches_on_any_number_of_processes(kind):
    weighted = {"sampler": WeightedRandomSampler(range(1, 66), 65)}
    order = {"shuffled": {"shuffle": True}, "in order": {}, "weighted": weighted}[kind]
    alone = logical(0, 1, DataLoader(Noisy(65), 4, **order))
    assert [len(shares) for shares in alone] == [6, 6, 6]
    assert [len(share) for share in alone[-1]] == [3] * 6  # 65 samples, padded to 66
    for size in (2, 3, 6):
        ranks = [
            logical(rank, size, DataLoader(Noisy(65), 4, num_workers=size == 3, **order), 1) for rank in range(size)
        ]
        for number, shares in enumerate(alone[1:]):
            assert [ranks[place % size][number][place // size] for place in range(6)] == shares


def test_a_process_count_that_does_not_divide_the_logical_ranks_is_refused():
    with pytest.raises(CheckpointError, match="6 logical ranks cannot be shared evenly by 4 processes") as refused:
        Shape(1, 4, 6)
    assert "1, 2, 3 or 6" in refused.value.hint


def test_logical_ranks_refuse_what_they_cannot_cut():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(5))

    batches = torch.utils.data.BatchSampler(range(8), 2, False)
    batches.__class__ = type("Mine", (torch.utils.data.BatchSampler,), {})
    for loader, why in [
        (DataLoader(Stream()), "cannot be shared out among logical ranks"),
        (DataLoader(Noisy(), batch_sampler=batches), "cannot be cut for several ranks"),
    ]:
        with pytest.raises(CheckpointError, match=why):
            source_for(loader, quiet, Shape(0, 1, 6))
