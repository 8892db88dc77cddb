"""Taking weights out of a checkpoint, and looking into one, without gpusched and without executing anything."""

import os
import subprocess
import sys

import pytest
import torch
from checkpoint_trees import a_tree, put, put_old, put_sharded
from torch import nn

from gpusched.checkpoint import load_weights
from gpusched.checkpoint.disk import inspect
from gpusched.checkpoint.disk.arrays import Array
from gpusched.checkpoint.disk.compare import Difference, compare, kind_of
from gpusched.checkpoint.disk.export import export
from gpusched.checkpoint.errors import CheckpointError


def model_tree(model, **parts):
    tree = a_tree()
    tree["parts"] = {"model": model.state_dict(), **parts}
    return tree


def load(path):
    if str(path).endswith(".safetensors"):
        return pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("save", [put, put_old], ids=["format 2", "format 1"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_exported_weights_load_into_the_plain_model(tmp_path, save, name):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).to(torch.bfloat16))
    told = export(save(tmp_path, model_tree(model)).path, str(tmp_path / name))
    fresh = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).to(torch.bfloat16))
    state = load(tmp_path / name)
    fresh.load_state_dict(state)
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value) and state[key].dtype == value.dtype
    assert (told.part, told.tensors, told.numbers) == ("model", 9, 36)
    assert told.size == os.path.getsize(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_averaged_weights_come_under_the_models_names(tmp_path, name):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
        average.update_parameters(model)
        model[0].weight.add_(1.0)
    path = put(tmp_path, model_tree(model, ema=average.state_dict())).path
    assert export(path, str(tmp_path / name), ema=True).part == "ema"
    fresh = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fresh.load_state_dict(load(tmp_path / name))
    assert torch.equal(fresh[0].weight, average.module[0].weight)
    assert not torch.equal(fresh[0].weight, model[0].weight)


def test_averaged_weights_without_names_are_not_guessed(tmp_path):
    model = nn.Linear(2, 2)
    path = put(tmp_path, model_tree(model, ema={"shadow": [torch.zeros(2, 2)], "0": torch.zeros(1)})).path
    with pytest.raises(CheckpointError, match="does not hold the model's tensors by their names"):
        export(path, str(tmp_path / "w.pt"), ema=True)


def test_of_several_models_one_is_chosen(tmp_path):
    tree = a_tree()
    tree["parts"] = {"model.a": {"w": torch.ones(2)}, "model.b": {"w": torch.zeros(2)}}
    path = put(tmp_path, tree).path
    with pytest.raises(CheckpointError, match="2 parts") as error:
        export(path, str(tmp_path / "w.pt"))
    assert "model.a, model.b" in error.value.hint
    export(path, str(tmp_path / "w.pt"), part="model.b")
    assert torch.equal(load(tmp_path / "w.pt")["w"], torch.zeros(2))
    for part in ("model.c", "position"):
        with pytest.raises(CheckpointError, match=part):
            export(path, str(tmp_path / "x.pt"), part=part)


def test_a_file_that_exists_is_not_replaced_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    path = put(tmp_path / "c", a_tree()).path
    target = tmp_path / "w.safetensors"
    target.write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        export(path, str(target))

    def full(self, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Array, "bytes_at", full)
    with pytest.raises(OSError, match="No space"):
        export(path, str(target), force=True)
    assert target.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["c", "w.safetensors"]
    monkeypatch.undo()
    export(path, str(target), force=True)
    assert set(load(target)) == {"0.weight", "0.bias"}


def test_an_ending_that_says_no_format_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="ending"):
        export(put(tmp_path, a_tree()).path, str(tmp_path / "weights"))


def test_tied_weights_stay_one_tensor_in_a_torch_file_and_are_two_in_the_other(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    tree = a_tree()
    tree["parts"] = {"model": {"in": shared, "out": shared.view(3, 4), "turned": shared.t(), "part": shared[1:]}}
    path = put(tmp_path, tree).path
    for name in ("w.pt", "w.safetensors"):
        export(path, str(tmp_path / name))
        state = load(tmp_path / name)
        assert {key: value.tolist() for key, value in state.items()} == {
            key: value.tolist() for key, value in tree["parts"]["model"].items()
        }
        assert (state["in"].data_ptr() == state["out"].data_ptr()) == name.endswith(".pt")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_kinds_of_numbers_that_safetensors_lacks_are_told_or_kept(tmp_path):
    tree = a_tree()
    tree["parts"] = {"model": {"c": torch.tensor([1 + 2j]), "e": torch.zeros(2, dtype=torch.complex32)}}
    path = put(tmp_path, tree).path
    export(path, str(tmp_path / "w.pt"))
    assert load(tmp_path / "w.pt")["c"].tolist() == [1 + 2j]
    with pytest.raises(CheckpointError, match="safetensors has no name for"):
        export(path, str(tmp_path / "w.safetensors"))


def test_tensors_in_pieces_of_several_ranks_are_put_together(tmp_path):
    whole = torch.arange(24.0).reshape(6, 4)
    one, other = put_sharded(tmp_path / "a", whole, 2), put_sharded(tmp_path / "b", whole, 3)
    assert compare(one.path, other.path) == [Difference("ranks", "ranks", "2 rank(s) saved the first and 3 the second")]
    third = put_sharded(tmp_path / "c", whole + (torch.arange(6) == 5).float()[:, None], 3)
    (difference,) = compare(other.path, third.path)
    assert difference.detail == "4 of 24 elements differ; first [5, 0]: 20 and 21; largest difference 1"
    export(other.path, str(tmp_path / "w.safetensors"))
    assert torch.equal(load(tmp_path / "w.safetensors")["w"], whole)
    (entry,) = [one for one in inspect.entries(inspect.read_content(other.path)) if one.place == "model/w"]
    assert (entry.node.shape, entry.node.dtype, entry.node.pieces) == ((6, 4), "float32", 3)
    model = torch.nn.Module()
    model.register_parameter("w", torch.nn.Parameter(torch.zeros(6, 4)))
    load_weights(model, tmp_path / "b")
    assert torch.equal(model.w, whole)


# ---- looking into one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [put, put_old], ids=["format 2", "format 1"])
def test_everything_in_a_checkpoint_is_listed_with_its_kind(tmp_path, save):
    found = list(inspect.entries(inspect.read_content(save(tmp_path, a_tree(note="hello")).path)))
    listed = {one.place: kind_of(one.node) for one in found}
    assert listed["model/0.weight"] == "float32 [3, 4]"
    assert listed["optimizer/state/0.weight/exp_avg"] == "float32 [3, 4]"
    assert listed["position/steps"] == "int 10"
    assert listed["values/note"] == "str 'hello'"
    assert listed["rng/python/1"] == "a tuple of 600"
    assert next(iter(listed)) == "model/0.weight"


@pytest.mark.parametrize("save", [put, put_old], ids=["format 2", "format 1"])
def test_looking_into_a_checkpoint_needs_no_torch(tmp_path, save):
    path = save(tmp_path, a_tree()).path
    program = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from gpusched.checkpoint.disk.inspect import entries, read_content\n"
        "print([one.place for one in entries(read_content(sys.argv[1]))][0])"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "model/0.weight\n", done.stderr


@pytest.mark.parametrize("save", [put, put_old], ids=["format 2", "format 1"])
def test_a_file_that_is_cut_short_is_no_surprise(tmp_path, save):
    path = save(tmp_path, a_tree()).path
    (table,) = [os.path.join(path, name) for name in os.listdir(path) if name.startswith("tensors")]
    os.truncate(table, os.path.getsize(table) - 50)
    with pytest.raises(CheckpointError):
        inspect.read_content(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"$tensor": "absent"}}', '{"x": {"$dict": 3}}'])
def test_a_state_file_that_makes_no_sense_is_refused(tmp_path, text):
    path = put(tmp_path, a_tree()).path
    with open(os.path.join(path, "state.json"), "w") as file:
        file.write(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        inspect.read_content(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "X", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "no", "data_offsets": [0, 8]},
        [],
    ],
)
def test_a_safetensors_header_is_not_trusted(tmp_path, entry):
    import json

    text = json.dumps({"w": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        inspect.safetensors_arrays(str(tmp_path / "x.safetensors"))


def test_a_directory_of_checkpoints_means_its_newest_good_one(tmp_path):
    put(tmp_path, a_tree(), 10)
    newer = put(tmp_path, a_tree(), 20)
    assert inspect.newest(str(tmp_path)) == newer.path
    with open(os.path.join(newer.path, "tensors.safetensors"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert inspect.newest(str(tmp_path)).endswith("step-10")
    with pytest.raises(CheckpointError, match="checksum"):
        inspect.newest(newer.path)
    with pytest.raises(CheckpointError, match="no checkpoints"):
        inspect.newest(str(tmp_path / "absent"))
