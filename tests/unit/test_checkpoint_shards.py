"""Tensors that no single process holds: every rank writes its pieces, and any other layout is filled from them."""

import json

import pytest
import torch
from fake_ranks import as_rank, make_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from gpusched.checkpoint import CheckpointError
from gpusched.checkpoint.disk.plan import make_plan
from gpusched.checkpoint.ranks import shards
from gpusched.checkpoint.ranks.sharded import Sharded, fit, product

FLAT = {"rows": [Shard(0)], "columns": [Shard(1)], "copies": [Replicate()]}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 6, generator=generator),  # 7 rows on 4 ranks: 2, 2, 2, 1
        "short": torch.randn(2, 3, generator=generator),  # two ranks have nothing of it
        "half": torch.randn(9, 4, generator=generator).bfloat16(),
        "whole numbers": torch.arange(12).reshape(3, 4),
        "complex": torch.randn(5, 2, generator=generator, dtype=torch.complex64),
        "empty": torch.randn(0, 4, generator=generator),
    }


def spread(table, mesh, placements):
    return {name: distribute_tensor(one, mesh, placements, src_data_rank=None) for name, one in table.items()}


def save(folder, table, shape, placements):
    """What the ranks of a run write together; gives the entries of each."""
    entries = []
    for rank in range(product(shape)):
        with as_rank(rank, product(shape)):
            live = spread(table, make_mesh(*shape), placements)
            whole, pieces, about = shards.split(dict(live, alone=torch.ones(2), tied=live["matrix"]))
            assert list(whole) == ["alone"]
            entries.append(shards.write(str(folder), rank, make_plan(pieces), about))
    return entries


def check(folder, table, shape, placements):
    """Every rank of another run finds its own pieces of the right values."""
    for rank in range(product(shape)):
        with as_rank(rank, product(shape)):
            live = spread(table, make_mesh(*shape), placements)
            loaded = shards.placeholders(str(folder))
            for name, value in dict(live, tied=live["matrix"]).items():
                found = loaded[name].like(torch.zeros_like(value))
                assert isinstance(found, DTensor) and found.placements == value.placements
                assert torch.equal(found.to_local(), value.to_local()), (name, rank)


@pytest.mark.parametrize("way", FLAT)
def test_what_four_ranks_save_loads_on_three_two_and_one(way, tmp_path):
    table = tensors()
    save(tmp_path, table, (4,), FLAT[way])
    for size in (4, 3, 2, 1):
        check(tmp_path, table, (size,), [Shard(0)])
    check(tmp_path, table, (2,), [Shard(1)])
    check(tmp_path, table, (2,), [Replicate()])


def test_a_mesh_of_two_dimensions_stores_every_piece_once(tmp_path):
    table = tensors()
    entries = save(tmp_path, table, (2, 2), [Replicate(), Shard(0)])
    stored = sum(entry["size"] for one in entries for name, entry in one.items() if name.endswith(".safetensors"))
    assert stored < sum(one.nbytes for one in table.values()) + 4 * 2000  # headers
    check(tmp_path, table, (3,), [Shard(0)])
    check(tmp_path, table, (2, 2), [Shard(0), Shard(1)])


def test_two_dimensions_that_both_cut_load_on_one_rank(tmp_path):
    table = {"matrix": torch.arange(48.0).reshape(8, 6)}
    save(tmp_path, table, (2, 2), [Shard(0), Shard(1)])
    check(tmp_path, table, (1,), [Shard(0)])
    assert torch.equal(shards.placeholders(str(tmp_path))["matrix"].whole(), table["matrix"])


def test_whole_tensors_come_back_without_torch_distributed(tmp_path):
    table = tensors()
    save(tmp_path, table, (3,), [Shard(0)])
    assert not torch.distributed.is_initialized()
    for name, found in shards.placeholders(str(tmp_path)).items():
        value = table["matrix" if name == "tied" else name]
        assert (found.shape, found.dtype) == (tuple(value.shape), value.dtype)
        assert torch.equal(found.whole(), value)


def test_nothing_that_is_written_could_be_executed(tmp_path):
    (entries, *_) = save(tmp_path, tensors(), (2,), [Shard(0)])
    assert sorted(entries) == ["shards/shared-0.json", "shards/shared-0.safetensors"]
    assert sorted(one.name for one in (tmp_path / "shards").iterdir()) == [
        "shared-0.json", "shared-0.safetensors", "shared-1.json", "shared-1.safetensors",
    ]  # fmt: skip
    assert json.loads((tmp_path / "shards" / "shared-0.json").read_text())["matrix"]["placements"] == ["S0"]
    data = (tmp_path / "shards" / "shared-0.safetensors").read_bytes()
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["matrix"]["dtype"] == "F32"


@pytest.mark.parametrize("lost", ["shared-1.json", "shared-2.json"])
def test_a_rank_whose_files_are_missing_is_noticed(lost, tmp_path):
    save(tmp_path, tensors(), (4,), [Shard(0)])
    (tmp_path / "shards" / lost).unlink()
    with pytest.raises(CheckpointError, match="cannot be put together: its pieces do not make it up"):
        shards.placeholders(str(tmp_path))


def test_pieces_that_lie_outside_of_their_tensor_are_noticed(tmp_path):
    save(tmp_path, tensors(), (2,), [Shard(0)])
    path = tmp_path / "shards" / "shared-1.json"
    described = json.loads(path.read_text())
    described["matrix"]["piece"]["offsets"] = [5, 0]
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"matrix in .* cannot be put together"):
        shards.placeholders(str(tmp_path))


def test_a_sum_that_has_not_been_made_yet_is_refused():
    with as_rank(0, 2):
        unfinished = DTensor.from_local(torch.ones(3), make_mesh(2), [Partial()])
        with pytest.raises(CheckpointError, match=r"loss is a sum over ranks that has not been made yet"):
            shards.split({"loss": unfinished})


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    save(tmp_path, tensors(), (2,), [Shard(0)])
    with pytest.raises(CheckpointError, match=r"matrix is \(7, 6\) in the checkpoint and \(6, 7\) here"):
        shards.placeholders(str(tmp_path))["matrix"].like(torch.zeros(6, 7))


def test_a_loaded_tree_takes_on_the_layout_of_the_live_one(tmp_path):
    table = tensors()
    save(tmp_path, table, (2,), [Shard(0)])
    loaded = shards.placeholders(str(tmp_path))
    with as_rank(1, 3):
        live = spread(table, make_mesh(3), [Shard(0)])
        tree = {"a": [loaded["matrix"], 3], "b": (table["half"],), "c": loaded["short"], "d": loaded["half"]}
        placed = fit(tree, {"a": [live["matrix"], 0], "b": (live["half"],), "c": torch.zeros(2, 3)})
    assert placed["a"][1] == 3 and isinstance(placed["b"], tuple)
    assert torch.equal(placed["a"][0].to_local(), table["matrix"][3:6])
    assert torch.equal(placed["b"][0].to_local(), table["half"][3:6])
    assert not any(isinstance(one, (DTensor, Sharded)) for one in (placed["c"], placed["d"]))
    assert torch.equal(placed["c"], table["short"]) and torch.equal(placed["d"], table["half"])
