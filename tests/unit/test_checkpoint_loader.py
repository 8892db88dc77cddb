"""Order and samples depend on (seed, epoch, place) alone; a loop that starts in the middle sees the same."""

import pickle
import random
from unittest import mock

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

from gpusched.checkpoint.batches import Batches
from gpusched.checkpoint.data import keyed
from gpusched.checkpoint.data.sources import KeyedLoader, PlainSequence, Replayed, source_for
from gpusched.checkpoint.position import Call
from gpusched.checkpoint.state import randomness


class Noisy(Dataset):
    """Samples with random numbers of every origin."""

    def __init__(self):
        self.own = numpy.random.default_rng(1)

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return index, random.random(), numpy.random.rand(), float(torch.rand(())), self.own.random()


class Fetching(Noisy):
    """Fetches whole batches at once, as Hugging Face's datasets do."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Endless(IterableDataset):
    def __iter__(self):
        for index in range(10):
            yield index, random.random(), float(torch.rand(()))


class Growing(torch.utils.data.Sampler):
    """A sampler of the user's own, of batches of growing size."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self):
        order, size = torch.randperm(23, generator=self.generator).tolist(), 1
        while order:
            batch, order, size = order[:size], order[size:], size + 1
            yield batch


def flat(batches):
    return [[column.tolist() if hasattr(column, "tolist") else column for column in batch] for batch in batches]


def seen(loader, start=0, seed=5):
    return flat(source_for(loader, lambda sentence: None).iterate(seed, start))


LOADERS = {
    "in order": lambda **more: DataLoader(Noisy(), batch_size=4, **more),
    "shuffled": lambda **more: DataLoader(Noisy(), batch_size=4, shuffle=True, **more),
    "shuffled, whole batches only": lambda **more: DataLoader(Noisy(), 4, True, drop_last=True, **more),
    "own generator": lambda **more: DataLoader(Noisy(), 4, True, generator=torch.Generator().manual_seed(3), **more),
    "with replacement": lambda **more: DataLoader(Noisy(), 4, sampler=RandomSampler(Noisy(), True, 30), **more),
    "batch sampler": lambda **more: DataLoader(Noisy(), batch_sampler=Growing(), **more),
    "single samples": lambda **more: DataLoader(Noisy(), batch_size=None, shuffle=True, **more),
    "subset": lambda **more: DataLoader(Subset(Noisy(), range(5, 19)), 4, True, **more),
    "whole batches fetched": lambda **more: DataLoader(Fetching(), 4, True, **more),
    "iterable": lambda **more: DataLoader(Endless(), batch_size=3, **more),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loop_that_starts_in_the_middle_sees_what_the_whole_loop_sees(kind):
    whole = seen(LOADERS[kind]())
    for start in (1, len(whole) - 1, len(whole)):
        assert seen(LOADERS[kind](), start) == whole[start:]
    assert seen(LOADERS[kind](), seed=6) != whole


@pytest.mark.parametrize("kind", ["shuffled", "batch sampler", "whole batches fetched", "with replacement"])
def test_workers_change_neither_order_nor_samples(kind):
    whole = seen(LOADERS[kind]())
    assert seen(LOADERS[kind](num_workers=2), start=2) == whole[2:]


def test_persistent_workers_see_the_same_in_every_epoch_as_fresh_ones():
    kept = source_for(LOADERS["shuffled"](num_workers=1, persistent_workers=True), print)
    first = flat(kept.iterate(5, 0))
    flat(kept.iterate(6, 3))
    assert flat(kept.iterate(5, 0)) == first == seen(LOADERS["shuffled"]())


@pytest.mark.parametrize("kind", LOADERS)
def test_loading_leaves_the_scripts_generators_alone(kind):
    loader = LOADERS[kind]()
    randomness.seed_everything(1)
    expected = [random.random(), numpy.random.rand(), float(torch.rand(()))]
    randomness.seed_everything(1)
    seen(loader)
    assert [random.random(), numpy.random.rand(), float(torch.rand(()))] == expected


def test_the_wrapped_dataset_can_be_sent_to_spawned_workers():
    wrapped = pickle.loads(pickle.dumps(keyed.wrap(Noisy(), calm=False)))
    assert wrapped[7, 3] == keyed.wrap(Noisy(), calm=False)[7, 3] != wrapped[8, 3]
    assert len(wrapped) == 23 and wrapped.own == [wrapped.dataset.own]


def test_repeated_samples_of_one_epoch_are_augmented_differently():
    batches = seen(DataLoader(Noisy(), 30, sampler=torch.utils.data.WeightedRandomSampler([1, 1, 1], 30)))
    assert len(set(batches[0][1])) == 30


def test_a_generators_seed_chooses_the_order():
    def order(seed):
        loader = DataLoader(Noisy(), 4, True, generator=torch.Generator().manual_seed(seed))
        return [batch[0] for batch in seen(loader)]

    assert order(1) == order(1) != order(2)


def test_every_sample_comes_once_and_epochs_differ():
    one, two = seen(LOADERS["shuffled"](), seed=1), seen(LOADERS["shuffled"](), seed=2)
    assert sorted(index for batch in one for index in batch[0]) == list(range(23))
    assert len({number for batch in one + two for number in batch[1]}) == 46  # and each is augmented in its own way
    assert [batch[0] for batch in one] != [batch[0] for batch in two]


def test_options_of_the_loader_are_kept():
    loader = DataLoader(Noisy(), batch_size=4, collate_fn=lambda samples: [[len(samples)]])
    assert seen(loader) == [[[4]]] * 5 + [[[3]]]
    assert source_for(loader, print).length() == len(loader) == 6


def test_a_dataset_without_randomness_is_not_seeded_for_every_sample(monkeypatch):
    data = TensorDataset(torch.arange(6.0))
    monkeypatch.setattr(randomness, "seed_everything", lambda seed: pytest.fail("seeded"))
    assert seen(DataLoader(Subset(data, [1, 3]), batch_size=2)) == [[[1.0, 3.0]]]


def test_ranges_and_lists_go_by_index():
    assert isinstance(source_for(range(5), print), PlainSequence)
    assert list(source_for(["a", "b", "c"], print).iterate(1, 2)) == ["c"]


def test_what_is_replayed_and_what_an_own_sampler_cannot_promise_is_told():
    told = []
    source = source_for(LOADERS["iterable"](), told.append)
    assert isinstance(source, Replayed) and told == []
    list(source.iterate(1, 2))
    assert "producing 2 batches again" in told[0] and "skipped 2 batches in" in told[1]
    told.clear()
    assert isinstance(source_for(LOADERS["batch sampler"](), told.append), KeyedLoader)
    assert "Growing" in told[0]
    told.clear()
    list(source_for((number for number in range(5)), told.append).iterate(1, 2))
    assert "generator cannot start in the middle" in told[0]


def test_a_loader_class_with_an_iteration_of_its_own_is_left_to_it():
    class Mine(DataLoader):
        def __iter__(self):
            return iter([["mine"]])

    told = []
    assert list(source_for(Mine(Noisy()), told.append).iterate(1, 0)) == [["mine"]]
    assert "Mine iterates in its own way" in told[0]


def test_a_stream_whose_workers_give_more_batches_than_its_length_says_loses_none_of_them():
    class Divided(IterableDataset):
        def __len__(self):
            return 8

        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            return iter(range(worker.id, 8, worker.num_workers))

    loader = DataLoader(Divided(), batch_size=3, num_workers=2)
    whole = [batch.tolist() for batch in source_for(loader, print).iterate(5, 0)]
    assert len(whole) == 4 and len(loader) == 3
    left = Batches(mock.Mock(), source_for(loader, print), Call(count=3), 5)
    assert [batch.tolist() for batch in left] == whole[3:]


def test_an_error_in_a_dataset_reaches_the_script_and_leaves_its_generators_alone():
    class Broken(Noisy):
        def __getitem__(self, index):
            raise KeyError("broken sample")

    random.seed(1)
    expected = random.random()
    random.seed(1)
    with pytest.raises(KeyError, match="broken sample"):
        seen(DataLoader(Broken()))
    assert random.random() == expected
