"""FSDP2's models and optimizers: saved on any number of ranks, or on none, and loaded on any other."""

import pytest
import torch
from fake_ranks import as_rank, make_mesh
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from gpusched.checkpoint import CheckpointError, digest
from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.disk.snapshot import Arena
from gpusched.checkpoint.ranks.sharded import fit
from gpusched.checkpoint.state import gradients
from gpusched.checkpoint.state.registry import Registry

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),  # has its state from the beginning
}


def told_nothing(sentence):
    raise AssertionError(sentence)


def pair(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))


def trained(model, make):
    """An optimizer after steps whose gradients depend on nothing but the place in the parameter."""
    optimizer = make(model.parameters())
    for number in range(2):
        for parameter in model.parameters():
            whole = torch.arange(float(parameter.numel())).reshape(parameter.shape).sin() + number
            parameter.grad = like(whole.to(parameter.dtype), parameter)
        optimizer.step()
    return optimizer


def like(whole, parameter):
    return fit(whole, parameter.detach())


def sharded(seed, size):
    model = pair(seed)
    mesh = make_mesh(size)
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save(folder, rank, objects):
    tree = {"shared": {"parts": Registry(objects).capture()}, "own": {"parts": {}}}
    if rank == 0:
        contents.write_shared(str(folder), tree)
    contents.write_own(str(folder), rank, tree)


def load(folder, objects, told=told_nothing):
    Registry(objects).restore(contents.read(str(folder))[0]["shared"]["parts"], told)


def plain_pair(make, seed=0):
    model = pair(seed)
    return model, trained(model, make)


def save_sharded(folder, size, make):
    for rank in range(size):
        with as_rank(rank, size):
            model = sharded(0, size)
            save(folder, rank, {"model": model, "optimizer": trained(model, make)})


def pieces_of(value, parameter):
    return like(value, parameter).to_local() if value.shape == parameter.shape else value


@pytest.mark.parametrize("way", OPTIMIZERS)
def test_four_ranks_to_three_to_one_and_back(way, tmp_path):
    make = OPTIMIZERS[way]
    save_sharded(tmp_path, 4, make)
    expected, moments = plain_pair(make)
    for size in (4, 3, 1):
        for rank in range(size):
            with as_rank(rank, size):
                model = sharded(1, size)
                optimizer = make(model.parameters())
                load(tmp_path, {"model": model, "optimizer": optimizer})
                for live, whole in zip(model.parameters(), expected.parameters(), strict=True):
                    assert torch.equal(live.to_local(), like(whole.detach(), live).to_local())
                    for key, value in moments.state[whole].items():
                        now = optimizer.state[live][key]
                        assert isinstance(now, DTensor) == (value.shape == whole.shape)
                        now = now.to_local() if isinstance(now, DTensor) else now
                        assert torch.equal(now, pieces_of(value, live)), (way, key)


@pytest.mark.parametrize("way", OPTIMIZERS)
def test_from_ranks_to_a_plain_script_and_back(way, tmp_path):
    make = OPTIMIZERS[way]
    (tmp_path / "sharded").mkdir()
    save_sharded(tmp_path / "sharded", 3, make)
    expected, moments = plain_pair(make)
    model = pair(1)
    optimizer = make(model.parameters())
    load(tmp_path / "sharded", {"model": model, "optimizer": optimizer})
    assert digest(model) == digest(expected) and digest(optimizer) == digest(moments)
    (tmp_path / "plain").mkdir()
    save(tmp_path / "plain", 0, {"model": model, "optimizer": optimizer})
    with as_rank(2, 3):
        live = sharded(2, 3)
        again = make(live.parameters())
        load(tmp_path / "plain", {"model": live, "optimizer": again})
        for parameter, whole in zip(live.parameters(), expected.parameters(), strict=True):
            assert torch.equal(parameter.to_local(), like(whole.detach(), parameter).to_local())
            for key, value in moments.state[whole].items():
                now = again.state[parameter][key]
                now = now.to_local() if isinstance(now, DTensor) else now
                assert torch.equal(now, pieces_of(value, parameter)), key


def test_tensor_parallel_and_sharded_at_once_loads_into_a_plain_script_and_back(tmp_path):
    def script(seed):
        model = pair(seed)
        mesh = make_mesh(2, 2)
        across, along = mesh[mesh.mesh_dim_names[0]], mesh[mesh.mesh_dim_names[1]]
        parallelize_module(
            model, along, {"0": ColwiseParallel()}, src_data_rank=None
        )  # its rows are then cut a second time
        return fully_shard(model, mesh=across)

    for rank in range(4):
        with as_rank(rank, 4):
            model = script(0)
            save(tmp_path, rank, {"model": model, "optimizer": trained(model, OPTIMIZERS["AdamW"])})
    model, (expected, moments) = pair(1), plain_pair(OPTIMIZERS["AdamW"])
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    load(tmp_path, {"model": model, "optimizer": optimizer})
    assert digest(model) == digest(expected) and digest(optimizer) == digest(moments)
    for rank in range(4):
        with as_rank(rank, 4):
            live = script(2)
            again = OPTIMIZERS["AdamW"](live.parameters())
            load(tmp_path, {"model": live, "optimizer": again})
            for found, whole in zip(live.parameters(), expected.parameters(), strict=True):
                assert torch.equal(found.to_local(), like(whole.detach(), found).to_local())
                moment = again.state[found]["exp_avg"]
                assert torch.equal(moment.to_local(), like(moments.state[whole]["exp_avg"], found).to_local())


def test_single_precision_moments_of_half_precision_pieces_keep_their_bits(tmp_path):
    def script(seed):
        model = sharded(seed, 2).bfloat16()
        return model, trained(model, OPTIMIZERS["AdamW"])

    for rank in range(2):
        with as_rank(rank, 2):
            model, optimizer = script(0)
            for state in optimizer.state.values():
                state["exp_avg"] = state["exp_avg"].float() + 1e-6
            save(tmp_path, rank, {"model": model, "optimizer": optimizer})
    with as_rank(1, 2):
        other, another = script(1)
        load(tmp_path, {"model": other, "optimizer": another})
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            saved, found = optimizer.state[mine]["exp_avg"], another.state[theirs]["exp_avg"]
            assert found.dtype == torch.float32 and torch.equal(found.to_local(), saved.to_local())


def test_state_that_is_not_shaped_like_its_parameter_lies_beside_it_as_it_was_saved(tmp_path):
    def rows(parameter):
        return DTensor.from_local(torch.ones(parameter.to_local().shape[0], 1), parameter.device_mesh,
                                  parameter.placements, shape=(parameter.shape[0], 1), stride=(1, 1))  # fmt: skip

    for rank in range(2):
        with as_rank(rank, 2):
            model = sharded(0, 2)
            optimizer = trained(model, OPTIMIZERS["momentum"])
            for parameter in model.parameters():
                optimizer.state[parameter]["rows"] = rows(parameter)
            save(tmp_path, rank, {"model": model, "optimizer": optimizer})
    with as_rank(0, 4):
        model = sharded(1, 4)
        optimizer = OPTIMIZERS["momentum"](model.parameters())
        load(tmp_path, {"model": model, "optimizer": optimizer})
        for parameter in model.parameters():
            found = optimizer.state[parameter]["rows"]
            assert found.placements == parameter.placements and found.device_mesh == parameter.device_mesh
            assert found.to_local().shape == (parameter.to_local().shape[0], 1)


def test_names_and_versions_stay_right_while_a_model_has_its_parameters_gathered(tmp_path):
    with as_rank(0, 1):
        model = sharded(0, 1)
        optimizer = trained(model, OPTIMIZERS["AdamW"])
        registry = Registry({"model": model, "optimizer": optimizer})
        before, names = registry.version(), registry.capture()["optimizer"]["groups"][0]["names"]
        with torch.no_grad():
            model(torch.ones(2, 4))  # leaves the outermost parameters gathered
        assert not all(isinstance(one, DTensor) for one in model.parameters())
        small = registry.capture_small()
        assert registry.version() == before
        assert small["optimizer"]["groups"][0]["names"] == names
        assert names == list(pair(0).state_dict())


def test_a_snapshot_holds_the_pieces_of_its_moment(tmp_path):
    for rank in range(2):
        with as_rank(rank, 2):
            model = sharded(0, 2)
            tree = {"shared": {"parts": Registry({"model": model}).capture()}, "own": {}}
            arena = Arena()
            halves = contents.copied(contents.encode_halves(tree), arena)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            contents.write_halves(str(tmp_path), rank, halves)
            arena.close()
    model = pair(1)
    load(tmp_path, {"model": model})
    assert digest(model) == digest(pair(0))


def test_gradients_of_a_window_go_from_ranks_to_a_plain_script_and_back(tmp_path):
    def grads_of(model):
        return gradients.capture({"": model}, [], window=True)

    for rank in range(2):
        with as_rank(rank, 2):
            model = sharded(0, 2)
            trained(model, OPTIMIZERS["momentum"])
            tree = {"shared": {"grads": grads_of(model)}, "own": {}}
            if rank == 0:
                contents.write_shared(str(tmp_path), tree)
            contents.write_own(str(tmp_path), rank, tree)
    saved, expected = contents.read(str(tmp_path))[0]["shared"]["grads"], plain_pair(OPTIMIZERS["momentum"])[0]
    model = pair(1)
    assert gradients.restore({"": model}, [], saved) == []
    wanted = grads_of(expected)["values"]
    assert all(torch.equal(found, wanted[name]) for name, found in grads_of(model)["values"].items())
    for source in (saved, grads_of(expected)):
        with as_rank(2, 3):
            live = sharded(2, 3)
            assert gradients.restore({"": live}, [], source) == []
            for name, found in grads_of(live)["values"].items():
                assert torch.equal(found.to_local(), fit(wanted[name], found).to_local())


def test_gradients_that_have_not_been_added_over_the_ranks_are_refused():
    with as_rank(0, 2):
        model = sharded(0, 2)
        gradients.capture({"": model}, [], window=True)
        model.set_requires_gradient_sync(False)
        with pytest.raises(CheckpointError, match="its ranks have not added up yet"):
            gradients.capture({"encoder": model}, [], window=True)


def test_digests_do_not_depend_on_the_layout():
    with as_rank(0, 1):
        model = sharded(0, 1)
        optimizer = trained(model, OPTIMIZERS["AdamW"])
        plain, moments = plain_pair(OPTIMIZERS["AdamW"])
        assert digest(model) == digest(plain) and digest(optimizer) == digest(moments)
        assert digest(sharded(1, 1)) != digest(model)
