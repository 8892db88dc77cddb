"""Logical ranks in one process: each has its own random numbers, buffers and gradients; the mean is theirs."""

import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpusched.checkpoint import CheckpointError, LogicalRanks, Run
from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import mix

BATCHES = [torch.arange(12.0).reshape(4, 3).sin() * (number + 1) for number in range(3)]


def make_model(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2))


def by_hand(model, batches, seed):
    """What logical ranks promise, written out."""
    start = {name: tensor.clone() for name, tensor in model.named_buffers()}
    gradients, kept = [], None
    for number, batch in enumerate(batches):
        model.load_state_dict(start, strict=False)
        model.zero_grad()
        randomness.seed_everything(mix(seed, "logical", number))
        model(batch).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        kept = kept or {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.zero_grad()
    return [sum(ones[1:], ones[0]) / 3 for ones in zip(*gradients, strict=True)], kept


def test_the_gradient_is_the_mean_and_the_buffers_are_those_of_logical_rank_0():
    expected, buffers = by_hand(make_model(), BATCHES, 7)
    model = make_model()
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    for batch in LogicalRanks(3, model).shares(BATCHES, 7):
        model(batch).square().mean().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, buffers[name])
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_gradients_that_were_there_are_added_to_and_those_that_nobody_has_stay_none():
    model = make_model()
    model.unused = nn.Parameter(torch.zeros(2))
    model.sometimes = nn.Parameter(torch.ones(1))
    model[0].bias.grad = torch.full((5,), 2.0)
    once = []
    for number, batch in enumerate(LogicalRanks(3, model).shares(BATCHES, 7)):
        assert model[0].bias.grad is None
        loss = model(batch).mean() + (3 * model.sometimes.sum() if number == 1 else 0)
        loss.backward()
        once.append(model[0].bias.grad.clone())
    assert model.unused.grad is None
    assert model.sometimes.grad.tolist() == [1.0]  # 3 in one of three
    assert torch.equal(model[0].bias.grad, 2.0 + (once[0] + once[1] + once[2]) / 3)


def test_registered_generators_start_anew_for_each_logical_rank_and_are_put_back():
    own, ranks = random.Random(5), {}
    before = own.getstate()
    for number, _ in enumerate(LogicalRanks(3, make_model(), [own, "no generator"]).shares(BATCHES, 7)):
        ranks[number] = own.random()
    assert ranks[1] == random.Random(mix(7, "logical", 1) & 0xFFFFFFFF).random()
    assert len(set(ranks.values())) == 3 and own.getstate() == before


def test_buffers_that_a_module_replaces_are_put_back_too():
    class Replacing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1), persistent=False)
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, batch):
            self.seen = self.seen + batch.sum()
            return (self.weight * batch).sum()

    model, started = Replacing(), []
    for batch in LogicalRanks(3, model).shares(BATCHES, 7):
        started.append(float(model.seen))
        model(batch).backward()
    assert started == [0.0, 0.0, 0.0] and torch.equal(model.seen, BATCHES[0].sum().reshape(1))


def test_an_evaluation_needs_no_gradients_and_leaves_them_alone():
    model = make_model().eval()
    model[0].bias.grad = torch.ones(5)
    with torch.no_grad():
        shares = LogicalRanks(3, model).shares(BATCHES, 7)
        losses = [model(batch).mean() for batch in shares]
    assert model[0].bias.grad.tolist() == [1.0] * 5 and model[0].weight.grad is None
    assert shares.mean(losses) == sum(float(loss) for loss in losses) / 3


def test_the_mean_wants_a_value_of_each_share():
    shares = LogicalRanks(3, make_model()).shares(BATCHES, 7)
    assert len(shares) == 3 and shares.mean([1, 2.5, torch.tensor(4.0, requires_grad=True)]) == 2.5
    with pytest.raises(CheckpointError, match="2 values for 3 shares"):
        shares.mean([1, 2])


def test_a_loop_that_is_left_early_is_told_at_the_next_step():
    ranks = LogicalRanks(3, make_model())
    for _ in ranks.shares(BATCHES, 7):
        break
    with pytest.raises(CheckpointError, match="left before its end"):
        ranks.shares(BATCHES, 8)


def test_shares_can_be_gone_through_once():
    shares = LogicalRanks(3, make_model()).shares(BATCHES, 7)
    for batch in shares:
        assert batch.shape == (4, 3)
    with pytest.raises(CheckpointError, match="only once"):
        list(shares)


def test_models_that_reduce_on_their_own_and_sparse_gradients_are_refused():
    with pytest.raises(CheckpointError, match="cannot work with a model in DataParallel"):
        LogicalRanks(2, nn.DataParallel(make_model()))
    model = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(CheckpointError, match="is sparse"):
        for _ in LogicalRanks(1, model).shares([0], 7):
            model(torch.tensor([1])).sum().backward()


def test_a_process_that_is_one_of_several_must_be_connected(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CheckpointError, match="one of 2"):
        LogicalRanks(2, make_model())


def test_a_run_with_logical_ranks_resumes_within_an_epoch_with_the_same_bits(tmp_path):
    def train(folder, last):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(torch.arange(90.0).reshape(30, 3).sin()), 2, shuffle=True)
        run = Run(model, optimizer, seed=3, directory=folder, logical=3)
        for _ in run.epochs(2):
            assert len(run.batches(range(2))) == 2  # what has no samples is not shared out
            for shares in run.batches(loader):
                optimizer.zero_grad()
                losses = []
                for (batch,) in shares:
                    losses.append(model(batch).square().mean())
                    losses[-1].backward()
                optimizer.step()
                run.values.setdefault("curve", []).append(shares.mean(losses))
                run.step()
                if run.steps == last:
                    assert run.save()
                    return None
        return run.values["curve"], [parameter.tolist() for parameter in model.parameters()]

    straight = train(tmp_path / "straight", None)
    assert train(tmp_path / "stopped", 3) is None
    assert train(tmp_path / "stopped", 8) is None
    assert train(tmp_path / "stopped", None) == straight and len(straight[0]) == 10
