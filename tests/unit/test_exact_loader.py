"""exact_loader: batches depend on (seed, epoch, place) alone, whoever owns the loop and whatever it does to it."""

import inspect
import random

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from gpusched.checkpoint import CheckpointError, exact_loader
from gpusched.checkpoint.state import randomness


class Noisy(Dataset):
    def __init__(self, count=23):
        self.count = count
        self.own = numpy.random.default_rng(1)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, random.random(), numpy.random.rand(), float(torch.rand(())), self.own.random()


class Masking:
    """A collate function with random numbers, and a generator of its own that its first call makes."""

    def __init__(self):
        self.generator = None

    def __call__(self, samples):
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(4)
        noise = [float(torch.rand((), generator=self.generator)), random.random()]
        return [[sample[0] for sample in samples], noise]


def exact(seed=3, count=23, batch=4, rank=None, size=None, **options):
    return exact_loader(DataLoader(Noisy(count), batch, **{"shuffle": True, **options}), seed, rank, size)


def flat(batches):
    return [[column.tolist() if hasattr(column, "tolist") else column for column in batch] for batch in batches]


def test_every_pass_is_the_next_epoch_and_any_number_of_workers_gives_the_same():
    loader = exact()
    epochs = [flat(loader) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3 and len(epochs[0]) == len(loader) == 6
    assert sorted(index for batch in epochs[0] for index in batch[0]) == list(range(23))
    workers = exact(num_workers=2, persistent_workers=True)
    assert [flat(workers) for _ in range(3)] == epochs
    workers.set_epoch(1)
    assert flat(workers) == epochs[1]
    assert flat(workers) == epochs[2]
    assert flat(exact(seed=4)) != epochs[0]


def test_it_goes_on_from_its_state_in_another_process():
    loader = exact(num_workers=1)
    flat(loader)
    second = iter(loader)
    before = flat([next(second), next(second)])
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 2)  # not what the worker has prefetched
    other = exact(seed=99)
    other.load_state_dict(state)
    assert before + flat(other) == flat_of_epoch(1)
    assert flat(other) == flat_of_epoch(2)


def flat_of_epoch(epoch, **options):
    loader = exact(**options)
    loader.set_epoch(epoch)
    return flat(loader)


def test_the_place_is_kept_when_the_loop_names_the_epoch_it_is_in():
    state = {**exact().state_dict(), "epoch": 1, "batch": 4}
    for prepare in (lambda loader: None, iter):  # Lightning makes an iterator first and names the epoch after it
        loader = exact(num_workers=1)
        loader.load_state_dict(state)
        prepare(loader)
        loader.set_epoch(1)
        assert flat(loader) == flat_of_epoch(1)[4:]
        loader.set_epoch(1)
        assert flat(loader) == flat_of_epoch(1)
    loader.load_state_dict(state)
    loader.set_epoch(2)
    assert flat(loader) == flat_of_epoch(2)


def test_states_at_the_ends_of_an_epoch():
    loader = exact()
    last = [loader.state_dict() for _ in loader][-1]
    assert (last["epoch"], last["batch"]) == (0, 6)
    over = loader.state_dict()
    assert (over["epoch"], over["batch"]) == (1, 0)
    other = exact()
    other.load_state_dict(last)
    assert flat(other) == [] and flat(other) == flat_of_epoch(1)
    other.load_state_dict(over)
    assert flat(other) == flat_of_epoch(1)


def test_a_pass_that_is_given_up_is_over():
    loader = exact()
    for _ in loader:
        break
    assert loader.state_dict()["batch"] == 1
    assert flat(loader) == flat_of_epoch(1)


def test_the_script_draws_what_it_would_draw_without_loading():
    randomness.seed_everything(1)
    expected = [random.random(), numpy.random.rand(), float(torch.rand(()))]
    for workers in (0, 1):
        randomness.seed_everything(1)
        flat(exact(num_workers=workers, collate_fn=Masking()))
        assert [random.random(), numpy.random.rand(), float(torch.rand(()))] == expected


def test_collate_functions_may_draw_random_numbers_even_from_a_generator_that_they_make_themselves():
    whole = flat_of_epoch(0, collate_fn=Masking())
    assert len({tuple(batch[1]) for batch in whole}) == 6
    assert flat_of_epoch(0, collate_fn=Masking(), num_workers=2) == whole
    later = exact(collate_fn=Masking())
    later.load_state_dict({**later.state_dict(), "batch": 3})
    assert flat(later) == whole[3:]


def test_ranks_get_slices_and_agree_whatever_their_torch_seeds_are():
    whole = flat_of_epoch(0, batch=8)
    parts = [flat_of_epoch(0, rank=rank, size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(parts[0][0], parts[1][0], strict=True)] == whole[0]
    found = []
    for rank in (0, 1):
        torch.manual_seed(rank)
        sampler = DistributedSampler(Noisy(24), 2, rank, seed=7)
        found.append(flat(exact_loader(DataLoader(Noisy(24), 4, sampler=sampler))))
    assert sorted(index for part in found for batch in part for index in batch[0]) == list(range(24))


def test_other_kinds_of_loaders():
    weighted = torch.utils.data.WeightedRandomSampler(range(1, 24), 30)
    batches = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(Noisy()), 4, False)
    own = type("Own", (), {"__iter__": lambda self: iter(batches), "__len__": lambda self: len(batches)})()
    kinds = [
        {"dataset": Noisy(), "batch_size": 4, "sampler": weighted},
        {"dataset": Noisy(), "batch_sampler": own},
        {"dataset": Noisy(), "batch_size": None, "shuffle": True},
    ]
    for kind in kinds:
        loader = exact_loader(DataLoader(**kind), seed=3)
        whole = flat(loader)
        again = exact_loader(DataLoader(**kind, num_workers=2), seed=3)
        again.load_state_dict({**again.state_dict(), "batch": 2})
        assert len(whole) == len(loader) and flat(again) == whole[2:]


def test_a_state_that_does_not_fit_is_refused():
    state = {**exact().state_dict(), "batch": 3}
    with pytest.raises(CheckpointError, match="had 23 samples when this place was saved and has 24 now"):
        exact(count=24).load_state_dict(state)
    with pytest.raises(CheckpointError, match="Batch 3 of 4 samples is not the beginning of a batch of 8"):
        exact(batch=8).load_state_dict(state)
    smaller = exact(batch=2)
    smaller.load_state_dict(state)
    joined = [a + b for a, b in zip(*flat_pair(smaller), strict=True)]
    assert joined == flat_of_epoch(0)[3]


def flat_pair(loader):
    found = flat(loader)
    return found[0], found[1]


def test_loaders_without_places_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    class Mine(DataLoader):
        def __iter__(self):
            return iter([])

    for loader, why in [
        (DataLoader(Stream()), "no places to start from"),
        (Mine(Noisy()), "Mine iterates in its own way"),
        ([1, 2], "takes a torch DataLoader, not a list"),
    ]:
        with pytest.raises(CheckpointError, match=why):
            exact_loader(loader)


def test_it_survives_accelerate_and_its_skipping_of_first_batches():
    accelerate = pytest.importorskip("accelerate", reason="needs the extra gpusched[frameworks]")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(exact())
    assert [flat(prepared), flat(prepared)] == [flat_of_epoch(0), flat_of_epoch(1)]
    fresh = accelerator.prepare(exact())
    fresh.set_epoch(1)
    assert flat(accelerate.skip_first_batches(fresh, 2)) == flat_of_epoch(1)[2:]
    assert flat(accelerate.skip_first_batches(exact(), 2)) == flat_of_epoch(0)[2:]


def test_accelerates_sharing_out_among_processes_and_naming_of_epochs_reaches_it():
    data_loader = pytest.importorskip("accelerate.data_loader", reason="needs the extra gpusched[frameworks]")
    found = []
    for rank in (0, 1):
        prepared = data_loader.prepare_data_loader(exact(count=24), num_processes=2, process_index=rank)
        later = data_loader.skip_first_batches(prepared, 1)
        later.set_epoch(1)  # Trainer says it to this one; it is three samplers away from ours
        found.append(flat(later))
    assert [found[0][0], found[1][0], found[0][1], found[1][1]] == flat_of_epoch(1, count=24)[2:]


def test_a_framework_can_build_it_again_from_its_attributes_with_another_sampler():
    shares = []
    for rank in (0, 1):
        original = exact(count=24, collate_fn=Masking())
        again = built_again(original, DistributedSampler(Noisy(24), 2, rank))
        assert type(again) is type(original)
        shares.append(flat(again))
    first = [a[0] + b[0] for a, b in zip(*shares, strict=True)]
    assert first == [batch[0] for batch in flat_of_epoch(0, count=24, batch=8)]
    assert isinstance(exact(rank=0, size=2).sampler, DistributedSampler)  # that one it leaves alone


def built_again(loader, sampler):
    """What Lightning's _update_dataloader does, whose import alone would take longer than all tests of this file."""
    known = {**inspect.signature(DataLoader.__init__).parameters, **inspect.signature(type(loader)).parameters}
    options = {name: value for name, value in vars(loader).items() if name in known}
    return type(loader)(**dict(options, sampler=sampler, shuffle=False, batch_sampler=None))
