"""Torch's own files and those of frameworks: looked into, compared and exported, and nothing in them is executed."""

import collections
import dataclasses
import os
import zipfile

import pytest
import torch
from checkpoint_trees import a_tree, put_old, spoil, write_safetensors
from torch import nn

from gpusched.checkpoint import CheckpointError, load_weights
from gpusched.checkpoint.disk import contents, inspect
from gpusched.checkpoint.disk.arrays import Array
from gpusched.checkpoint.disk.compare import compare
from gpusched.checkpoint.disk.export import export
from gpusched.checkpoint.disk.torchfile import Opaque, read_torch
from gpusched.checkpoint.frameworks import folder, sealed


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@dataclasses.dataclass
class Settings:
    rate: float
    names: list


def test_a_checkpoint_with_code_in_its_torch_file_is_refused_and_not_run(tmp_path):
    path = put_old(tmp_path, a_tree()).path
    flag = str(tmp_path / "ran")
    torch.save({"model/0.weight": Evil(flag)}, os.path.join(path, "tensors.pt"))
    with pytest.raises(CheckpointError, match=r"it holds (posix|os).mkdir, which is not a tensor"):
        inspect.read_content(path)
    assert not os.path.exists(flag)


def test_any_torch_file_can_be_looked_into_and_objects_are_only_named(tmp_path):
    flag, turned = str(tmp_path / "ran"), torch.arange(6.0).reshape(2, 3).t()
    tensors = {
        "w": torch.ones(2, dtype=torch.bfloat16), "turned": turned, "part": torch.arange(9)[4:6],
        "none": torch.empty(0, 3), "p": nn.Parameter(torch.ones(1)), "fp8": torch.zeros(2, dtype=torch.float8_e5m2),
    }  # fmt: skip
    others = {
        "evil": Evil(flag), "settings": Settings(0.5, ["a"]), "class": Settings,
        "more": collections.OrderedDict(a=[1, (2.5, None)], b={3}, c=torch.Size([1])),
        "default": collections.defaultdict(list, x=[1]),
    }  # fmt: skip
    torch.save({**tensors, **others}, tmp_path / "x.pt")
    found = read_torch(str(tmp_path / "x.pt"))
    assert not os.path.exists(flag)
    shown = {key: (one.dtype, one.shape) for key, one in found.items() if isinstance(one, Array)}
    assert shown == {key: (str(one.dtype)[6:], tuple(one.shape)) for key, one in tensors.items()}
    for key, one in tensors.items():
        raw = bytes(one.detach().contiguous().view(torch.uint8).flatten().tolist()) if one.numel() else b""
        assert found[key].bytes_at(0, 999) == raw, key
    assert found["part"].bytes_at(8, 8) == (5).to_bytes(8, "little")
    assert isinstance(found["evil"], Opaque) and found["evil"].name.endswith(".mkdir")
    assert found["settings"].name.endswith(".Settings") and {"rate": 0.5, "names": ["a"]} in found["settings"].made_from
    assert found["more"] == {"a": [1, (2.5, None)], "b": {3}, "c": (1,)} and found["default"] == {"x": [1]}


@pytest.mark.parametrize("damage", ["cut", "reach", "compressed", "pickle"])
def test_a_torch_file_is_not_trusted(tmp_path, damage):
    path = str(tmp_path / "x.pt")
    torch.save({"w": torch.arange(4.0)}, path)
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        kind = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, data in parts.items():
                if damage == "reach" and "/data/" in name:
                    data = data[:8]
                if damage == "pickle" and name.endswith("data.pkl"):
                    data = data[:-5]
                archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="is not a whole torch file"):
        read_torch(path)


# ---- what frameworks have saved ---------------------------------------------------------------------------------


def put_lightning(directory, model, step=10):
    """As the Lightning adapter writes it: Lightning's own file, with our state around it."""

    def write(place):
        state = {"state_dict": model.state_dict(), "epoch": 1, "callbacks": {"x": {"best": 0.5}}}
        torch.save({**state, "optimizer_states": [{"state": {0: {"m": torch.ones(2)}}}]}, f"{place}/lightning.ckpt")

    tree = {"shared": {"position": {"steps": step, "epoch": 1, "batch": 0}}, "own": {"values": {}}}
    return folder.publish(str(directory), "lightning", write, tree, {})


def load(path):
    if str(path).endswith(".safetensors"):
        return pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_framework_keeps_its_weights_in_its_own_file_and_they_count(tmp_path, name):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    one, two = put_lightning(tmp_path / "a", model), put_lightning(tmp_path / "b", other)
    assert compare(one.path, one.path) == []
    places = [item.place for item in compare(one.path, two.path)]
    assert places == ["lightning.ckpt/state_dict/weight", "lightning.ckpt/state_dict/bias"]
    assert export(one.path, str(tmp_path / name)).part == "model"
    assert torch.equal(load(tmp_path / name)["weight"], model.weight)
    load_weights(other, tmp_path / "a")
    assert torch.equal(other.weight, model.weight)


def test_a_directory_of_hugging_faces_trainer_that_is_sealed(tmp_path):
    model, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    path = tmp_path / "checkpoint-10"
    path.mkdir()
    write_safetensors(path / "model.safetensors", model.state_dict())
    torch.save({"state": {0: {"m": torch.ones(2)}}}, path / "optimizer.pt")
    torch.save(Settings(0.1, []), path / "training_args.bin")
    tree = {"shared": {"position": {"steps": 10, "epoch": 1, "batch": 0}}, "own": {"values": {}}}
    contents.write_shared(str(path), tree)
    contents.write_own(str(path), 0, tree)
    sealed.seal(str(path), {"framework": "transformers", "step": 10, "epoch": 1})
    places = {one.place for one in inspect.entries(inspect.read_content(str(path)))}
    assert {"model.safetensors/weight", "optimizer.pt/state/[0]/m", "position/steps"} <= places
    export(str(path), str(tmp_path / "w.pt"))
    assert torch.equal(load(tmp_path / "w.pt")["weight"], model.weight)
    load_weights(fresh, path)
    assert torch.equal(fresh.weight, model.weight)
    spoil(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be used: model\.safetensors is damaged"):
        load_weights(fresh, path)
