"""Iterables with a state of their own continue from it; everything else is replayed, and says what that costs."""

import json
import random
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gpusched.checkpoint import CheckpointError, exact_loader
from gpusched.checkpoint.data.replayed import Replayed
from gpusched.checkpoint.data.sources import KeyedLoader, source_for
from gpusched.checkpoint.data.stateful import Stateful, StatefulLoader
from gpusched.checkpoint.disk import plain

# torchdata 0.11 calls something that torch has deprecated since
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


class Stream(IterableDataset):
    """Numbers in a shuffled buffer, divided among the workers, with random transforms; knows how far it was read."""

    def __init__(self, count=37):
        self.count, self.place, self.buffer = count, 0, []

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        if self.place >= self.count and not self.buffer:
            self.place = 0
        while self.place < self.count or self.buffer:
            while self.place < self.count and len(self.buffer) < 5:
                if self.place % step == first:
                    self.buffer.append(self.place)
                self.place += 1
            if self.buffer:
                number = self.buffer.pop(random.randrange(len(self.buffer)))
                yield number, float(torch.rand(()))

    def state_dict(self):
        return {"place": self.place, "buffer": list(self.buffer)}

    def load_state_dict(self, state):
        self.place, self.buffer = state["place"], list(state["buffer"])


class Forgetful(IterableDataset):
    def __iter__(self):
        for index in range(10):
            yield index, random.random(), float(torch.rand(()))


def quiet(sentence):
    pass


def flat(batch):
    return [column.tolist() if hasattr(column, "tolist") else column for column in batch]


def through_json(state):
    """What a checkpoint makes of a state."""
    tensors = {}
    text = json.dumps(plain.encode(state, tensors, "state"))
    return plain.decode(json.loads(text), tensors)


def in_pieces(make, stops, seed=5, tell=quiet):
    """An epoch that is left and resumed after so many batches, each time with new objects as in a new process."""
    found, state = [], None
    for stop in [*stops, None]:
        source = source_for(make(), tell)
        batches = source.iterate(seed, len(found), state)
        for batch in batches:
            found.append(flat(batch))
            if len(found) == stop:
                state = through_json(source.state())
                batches.close()
                break
    return found


def stateful(workers, make=Stream, **options):
    loader = pytest.importorskip("torchdata.stateful_dataloader", reason="needs the extra gpusched[frameworks]")
    return lambda: loader.StatefulDataLoader(make(), batch_size=3, num_workers=workers, **options)


def epoch(make, seed=5):
    source = source_for(make(), quiet)
    return [flat(batch) for batch in source.iterate(seed, 0)]


@pytest.mark.parametrize("workers, options", [(0, {}), (2, {}), (2, {"snapshot_every_n_steps": 3})])
def test_a_stateful_loader_over_a_stream_resumes_again_and_again_with_the_same_samples(workers, options):
    make = stateful(workers, **options)
    whole = epoch(make)
    assert sorted(number for batch in whole for number in batch[0]) == list(range(37))
    assert isinstance(source_for(make(), quiet), StatefulLoader)
    told = []
    assert in_pieces(make, [2, 4, 5, len(whole) - 1, len(whole)], tell=told.append) == whole
    assert told == []  # nothing was produced twice
    assert epoch(make, seed=6) != whole


def test_epochs_after_a_resume_are_what_they_would_have_been():
    make = stateful(2)
    straight = source_for(make(), quiet)
    expected = [[flat(batch) for batch in straight.iterate(seed, 0)] for seed in (5, 6)]
    source = source_for(make(), quiet)
    batches = source.iterate(5, 0)
    found = [flat(next(batches)) for _ in range(4)]
    state = through_json(source.state())
    resumed = source_for(make(), quiet)
    found += [flat(batch) for batch in resumed.iterate(5, 4, state)]
    assert [found, [flat(batch) for batch in resumed.iterate(6, 0)]] == expected


def test_an_epoch_is_finished_with_the_number_of_workers_it_was_begun_with():
    whole = epoch(stateful(2))
    source = source_for(stateful(2)(), quiet)
    batches = source.iterate(5, 0)
    assert [flat(next(batches)) for _ in range(3)] == whole[:3]
    state = through_json(source.state())
    for workers in (0, 1):
        told = []
        fewer = source_for(stateful(workers)(), told.append)
        assert [flat(batch) for batch in fewer.iterate(5, 3, state)] == whole[3:]
        assert f"it is finished with 2, the next one has {workers}" in told[0]


def test_a_stateful_loader_over_a_data_set_with_places_keeps_the_exact_order():
    class Places(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, index):
            return index, random.random()

    told = []
    source = source_for(stateful(1, Places, shuffle=True)(), told.append)
    assert isinstance(source, KeyedLoader) and source.state() is None and told == []
    plain_one = source_for(DataLoader(Places(), 3, shuffle=True), quiet)
    expected = [flat(batch) for batch in plain_one.iterate(5, 1)]
    assert [flat(batch) for batch in source.iterate(5, 1)] == expected
    assert source.identity() == plain_one.identity()
    exact = exact_loader(stateful(0, Places, shuffle=True)(), seed=3)
    assert [flat(batch) for batch in source_for(exact, told.append).iterate(5, 1)] == expected and told == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_over_a_stream_without_state_is_replayed_and_loses_nothing(workers):
    make, told = stateful(workers, Forgetful), []
    whole = epoch(make)
    assert in_pieces(make, [1, 3], tell=told.append) == whole
    assert len(whole) == (4 if workers == 0 else 8)
    assert "producing 1 batches again" in told[0] and "producing 3 batches again" in told[2]


def test_persistent_workers_of_a_stream_are_switched_off_with_a_sentence():
    told = []
    source = source_for(stateful(1, persistent_workers=True)(), told.append)
    assert "persistent_workers is switched off" in told[0]
    assert [flat(batch) for batch in source.iterate(5, 0)] == epoch(stateful(1))


def test_a_plain_loader_without_workers_uses_the_state_of_its_data_set():
    def make():
        return DataLoader(Stream(), batch_size=3)

    whole, told = epoch(make), []
    assert isinstance(source_for(make(), quiet), Stateful)
    assert in_pieces(make, [1, 6, 7], tell=told.append) == whole and told == []


def test_asking_for_the_state_changes_nothing_not_even_for_a_collate_function_that_draws():
    def make():
        return DataLoader(Stream(10), batch_size=1, collate_fn=lambda samples: [samples[0], random.random()])

    source, found = source_for(make(), quiet), []
    for batch in source.iterate(5, 0):
        found.append(flat(batch))
        assert source.state() is not None and source.state() is not None
    assert found == epoch(make) and len(found) == 10
    assert in_pieces(make, [3, 10]) == found


def test_with_workers_it_cannot_and_names_the_loader_that_can():
    told = []
    source = source_for(DataLoader(Stream(), batch_size=3, num_workers=1), told.append)
    assert isinstance(source, Replayed) and not isinstance(source, Stateful)
    assert "StatefulDataLoader" in told[0]


class Counting:
    """Any iterable with a state, as datasets that stream from a hub have it."""

    def __init__(self, count=9, odd=None):
        self.count, self.place, self.odd = count, 0, odd

    def __iter__(self):
        while self.place < self.count:
            self.place += 1  # before the yield: when it is asked, this one has been given
            yield self.place, random.random()
        self.place = 0

    def state_dict(self):
        return {"place": self.place, "odd": self.odd}

    def load_state_dict(self, state):
        if state["place"] > self.count:
            raise ValueError("beyond the end")
        self.place = state["place"]


def test_any_iterable_with_a_state_continues_from_it():
    whole, told = epoch(Counting), []
    assert [batch[0] for batch in whole] == list(range(1, 10))
    assert in_pieces(Counting, [2, 3, 9], tell=told.append) == whole and told == []


def test_there_is_no_state_outside_of_a_loop():
    source = source_for(Counting(), quiet)
    assert source.state() is None
    batches = source.iterate(5, 0)
    next(batches)
    assert source.state()["inner"] == {"place": 1, "odd": None}
    list(batches)
    assert source.state() is None


def test_a_state_that_cannot_be_stored_safely_is_not_and_the_iterable_is_replayed():
    def make():
        return Counting(odd=object())

    told = []
    assert in_pieces(make, [4], tell=told.append) == epoch(make)
    assert "is a builtins.object, which cannot be stored safely" in told[0]
    assert "will replay its batches" in told[0] and "producing 4 batches again" in told[1]


def test_a_state_that_does_not_fit_any_more_is_refused_with_its_reason():
    source = source_for(Counting(), quiet)
    batches = source.iterate(5, 0)
    for _ in range(6):
        next(batches)
    state = source.state()
    with pytest.raises(CheckpointError, match="Counting could not continue from its saved state: ValueError: beyond"):
        list(source_for(Counting(3), quiet).iterate(5, 6, state))


def test_a_replay_reaches_the_same_batches_although_the_loader_has_a_generator_of_its_own():
    def make():
        return DataLoader(Forgetful(), batch_size=3, num_workers=1, generator=torch.Generator())

    def moved():  # as if other epochs had come before
        loader = make()
        loader.generator.manual_seed(99)
        return loader

    assert [flat(batch) for batch in source_for(moved(), quiet).iterate(5, 2)] == epoch(make)[2:]


def test_a_replay_says_beforehand_what_it_will_cost_if_that_is_known_and_on_its_way_if_it_is_long(monkeypatch):
    told, clock = [], iter(range(0, 1000, 2))
    source = source_for(Forgetful(), told.append)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    source.pace = 2.0
    assert len(list(source.iterate(5, 6))) == 4
    assert told == [
        "Forgetful cannot start in the middle: producing 6 batches again to skip them, about 12 s",
        "skipped 3 batches so far; about 6 s to go (with state_dict() and load_state_dict(), none)",
        "skipped 6 batches in 14.0 s",
    ]


def test_a_replay_that_finds_less_than_there_was_says_so():
    told = []
    assert list(source_for(iter(range(3)), told.append).iterate(5, 4)) == []
    assert "range_iterator has only 3 batches, and 4 were done when it was saved" in told[-1]


def test_a_generator_that_is_used_up_is_named():
    told, once = [], (number for number in range(3))
    source = source_for(once, told.append)
    assert list(source.iterate(1, 0)) == [0, 1, 2] and told == []
    assert list(source.iterate(2, 0)) == []
    assert "this generator was gone through already: make a new one in every epoch" in told[0]


def test_what_raises_in_the_middle_raises_in_the_loop_and_is_not_running_any_more():
    class Breaking(Counting):
        def __iter__(self):
            for item in super().__iter__():
                if self.place == 3:
                    raise OSError("the disk is gone")
                yield item

    source, found = source_for(Breaking(), quiet), []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(source.iterate(5, 0))
    assert len(found) == 2 and source.state() is None


def test_what_cannot_be_iterated_over_is_refused():
    with pytest.raises(CheckpointError, match="was given a int, which cannot be iterated over"):
        source_for(7, quiet)


def test_a_list_that_changes_is_other_data_and_a_range_may_grow():
    assert source_for([1, 2], quiet).identity() != source_for([1, 2, 3], quiet).identity()
    assert source_for(range(2), quiet).identity() == source_for(range(3), quiet).identity()
