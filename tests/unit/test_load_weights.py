"""load_weights: other people's files into a model, strictly, and never silently."""

import argparse
import gc
import json
import os
import pathlib
import zipfile

import pytest
import torch
from checkpoint_trees import a_tree, put, put_old
from torch import nn
from weight_files import Net, copy_of, error_of, same, unchanged, write

from gpusched.checkpoint import Run, load_weights

# ---- what fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.bin"])
def test_a_state_dict_is_loaded_whole_and_said_so(tmp_path, capsys, name):
    theirs, model = Net(seed=1), Net(seed=2)
    told = load_weights(model, write(tmp_path / name, theirs.state_dict()))
    assert same(model, theirs) and told.complete
    assert str(told) == f"loaded 9 of 9 tensors (64 numbers) from {tmp_path / name}"
    assert capsys.readouterr().err == ""


NESTS = [
    lambda state: {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {0: {"m": torch.ones(2)}}}]},
    lambda state: {"model": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": []}},
    lambda state: {"model": {"state_dict": state}, "ema": state},
    lambda state: {"model_state_dict": state, "rng_state": torch.zeros(3)},
    lambda state: {"student": state, "optim": {"m": torch.ones(2)}},
    lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
]


@pytest.mark.parametrize("nest", NESTS)
def test_the_model_is_found_under_the_names_that_trainers_use(tmp_path, nest):
    theirs, model = Net(seed=1), Net(seed=2)
    load_weights(model, write(tmp_path / "w.pt", nest(theirs.state_dict())))
    assert same(model, theirs)


def test_numpy_numbers_beside_the_weights_are_no_obstacle(tmp_path):
    numpy = pytest.importorskip("numpy")
    theirs, model = Net(seed=1), Net(seed=2)
    value = {"state_dict": theirs.state_dict(), "best": numpy.float64(0.5), "curve": numpy.arange(3.0)}
    load_weights(model, write(tmp_path / "w.pt", value))
    assert same(model, theirs)


def test_numbers_of_the_old_numpy_are_no_obstacle_either(tmp_path):
    numpy = pytest.importorskip("numpy")
    theirs, model = Net(seed=1), Net(seed=2)
    path = write(tmp_path / "w.pt", {"state_dict": theirs.state_dict(), "best": numpy.float64(0.5)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(b"numpy._core", b"numpy.core"))
    load_weights(model, path)
    assert same(model, theirs)


@pytest.mark.parametrize(
    "front",
    ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module.", "module.model."],
)
def test_prefixes_of_wrappers_are_matched_however_nested(tmp_path, front):
    theirs, model = Net(seed=1), Net(seed=2)
    path = write(tmp_path / "w.pt", {front + name: value for name, value in theirs.state_dict().items()})
    load_weights(model, path)
    assert same(model, theirs)


def test_a_wrapper_in_the_middle_and_a_wrapped_model_here(tmp_path):
    theirs = Net(seed=1)
    state = {name.replace("body.", "body._orig_mod."): value for name, value in theirs.state_dict().items()}
    model = nn.DataParallel(Net(seed=2))
    assert load_weights(model, write(tmp_path / "w.pt", state)).loaded[0] == "body.weight"
    assert same(model.module, theirs)
    outer = nn.Module()
    outer.model = Net(seed=3)
    load_weights(outer, str(tmp_path / "w.pt"))
    assert same(outer.model, theirs)


def test_what_is_not_under_the_prefix_is_left_over_and_never_mistaken(tmp_path):
    theirs = Net(seed=1)
    state = {"model." + name: value for name, value in theirs.state_dict().items()}
    state["body.weight"] = torch.full((5, 4), 7.0)
    model = Net(seed=2)
    told = load_weights(model, state, partial=True)
    assert same(model, theirs) and told.unexpected == ("body.weight",)


def test_a_tensor_of_another_name_is_found_by_rename_and_prefix(tmp_path):
    theirs, model = Net(seed=1), Net(seed=2)
    state = {"net." + name.replace("body", "features.0"): value for name, value in theirs.state_dict().items()}
    state["decoder.weight"] = torch.zeros(2)
    load_weights(model, state, prefix="net.", rename={"features.0.": "body."})
    assert same(model, theirs)
    again = Net(seed=3)
    load_weights(
        again, state, rename=lambda name: None if "decoder" in name else name[4:].replace("features.0", "body")
    )
    assert same(again, theirs)


def test_tied_weights_are_in_a_file_once(tmp_path):
    model, theirs = Net(5), Net(5, seed=1)
    for one in (model, theirs):
        one.tied = nn.Linear(5, 5)
        one.tied.weight = one.head.weight
    state = {name: value for name, value in theirs.state_dict().items() if name != "tied.weight"}
    told = load_weights(model, write(tmp_path / "w.safetensors", state))
    assert same(model, theirs) and told.complete and "tied.weight" in told.loaded


def test_an_old_file_without_batch_counts_is_complete_enough(tmp_path):
    state = {name: value for name, value in Net(seed=1).state_dict().items() if "num_batches" not in name}
    told = load_weights(Net(), state)
    assert told.missing == ("norm.num_batches_tracked",)


def test_a_sharded_directory_is_read_by_its_index(tmp_path):
    theirs, model = Net(seed=1), Net(seed=2)
    state = theirs.state_dict()
    places = {name: f"model-0000{1 + name.startswith('head')}-of-00002.safetensors" for name in state}
    for file in set(places.values()):
        write(tmp_path / file, {name: state[name] for name in state if places[name] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load_weights(model, tmp_path)
    assert same(model, theirs)
    os.unlink(tmp_path / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors is missing" in error_of(Net(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "not a file beside it" in error_of(Net(), tmp_path)


@pytest.mark.parametrize("save", [put, put_old], ids=["format 2", "format 1"])
def test_a_checkpoint_of_ours_and_a_directory_of_them(tmp_path, save, capsys):
    older, newer, model = Net(seed=1), Net(seed=2), Net(seed=3)
    for step, one in ((10, older), (20, newer)):
        tree = a_tree()
        tree["parts"] = {"model": one.state_dict(), "ema": {"module." + k: v + 1 for k, v in one.state_dict().items()}}
        save(tmp_path, tree, step)
    load_weights(model, tmp_path / "step-10")
    assert same(model, older)
    load_weights(model, str(tmp_path))
    assert same(model, newer)
    load_weights(model, tmp_path, part="ema")
    assert torch.equal(model.body.weight, newer.body.weight + 1)
    with open(tmp_path / "step-20" / "state.json", "a") as file:
        file.write(" ")
    load_weights(model, tmp_path)
    assert same(model, older) and "skipping checkpoint step-20: state.json has" in capsys.readouterr().err
    assert "step-20 cannot be used" in error_of(model, tmp_path / "step-20")
    manifest = json.loads((tmp_path / "step-20" / "manifest.json").read_text())
    (tmp_path / "step-20" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "a newer gpusched wrote it (format 99" in error_of(model, tmp_path)


# ---- partly ------------------------------------------------------------------------------------------------------


def test_a_head_of_another_size_stays_as_it_was_and_is_told(tmp_path, capsys):
    theirs, model = Net(1000, seed=1), Net(3, seed=2)
    before = copy_of(model)
    path = write(tmp_path / "w.pt", theirs.state_dict())
    message = error_of(model, path)
    assert "head.weight is [1000, 5] in" in message and "and [3, 5] in the model (and 1 more)" in message
    assert "partial=True, or skip=['head.weight']" in message and unchanged(model, before)
    told = load_weights(model, path, partial=True)
    assert torch.equal(model.body.weight, theirs.body.weight)
    assert torch.equal(model.head.weight, before["head.weight"])
    assert told.mismatched[0] == ("head.weight", (1000, 5), (3, 5)) and not told.complete
    assert "head.weight is [1000, 5] in the file and [3, 5] in the model, left as it was" in capsys.readouterr().err


@pytest.mark.parametrize("skip", [["head."], ["head.*"], ["head.weight", "head.bias"], ("*ead.*",)])
def test_what_is_skipped_stays_and_the_rest_is_strict(tmp_path, skip):
    theirs, model = Net(1000, seed=1), Net(3, seed=2)
    before = copy_of(model)
    told = load_weights(model, theirs.state_dict(), skip=skip)
    assert told.skipped == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, before["head.weight"]) and torch.equal(model.body.bias, theirs.body.bias)


def test_a_skip_that_names_nothing_is_a_mistake():
    message = error_of(Net(), Net().state_dict(), skip=["haed."])
    assert "skip names 'haed.', which is nothing in the model" in message and "head.bias" in message


def test_missing_and_unexpected_names_are_told_with_partial_and_errors_without():
    state = Net(seed=1).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["head.bias"]
    model = Net(seed=2)
    before = copy_of(model)
    message = error_of(model, state)
    assert "head.bias is not in the given state_dict." in message and "partial=True" in message
    told = load_weights(model, state, partial=True)
    assert (told.missing, told.unexpected) == (("head.bias",), ("extra.weight",))
    assert "1 not in the file, left as they were (head.bias); 1 in the file only (extra.weight)" in str(told)
    assert torch.equal(model.head.bias, before["head.bias"])
    state["head.bias"] = torch.zeros(3)
    assert "extra.weight of the given state_dict is not in the model." in error_of(model, state)


@pytest.mark.parametrize("partial", [False, True])
def test_random_weights_are_never_taken_for_loaded_ones(tmp_path, partial):
    state = {f"other.{index}": torch.zeros(1) for index in range(163)}
    model = Net()
    before = copy_of(model)
    message = error_of(model, write(tmp_path / "w.pt", state), partial=partial)
    assert "0 of the model's 9 tensors fit what is in" in message and "nothing was loaded" in message
    assert "body.weight is not there; it has names such as other.0." in message
    state.update({"head.bias": torch.ones(3), "norm.num_batches_tracked": torch.tensor(1)})
    assert "2 of the model's 9 tensors" in error_of(model, state, partial=partial)
    assert unchanged(model, before)


def test_a_backbone_of_a_larger_model_is_not_almost_nothing():
    model = Net()
    for index in range(40):
        model.add_module(f"block{index}", nn.Linear(2, 2))
    theirs = Net(seed=1)
    load_weights(model, theirs.state_dict(), partial=True)
    assert torch.equal(model.body.weight, theirs.body.weight)
    load_weights(theirs, model.state_dict(), partial=True)


def test_a_rename_that_would_help_is_said():
    state = {"backbone.stem." + name: value for name, value in Net().state_dict().items()}
    assert "The names would fit with rename={'backbone.stem.': ''}." in error_of(Net(), state, partial=True)
    state = {name.replace("body.", "features.0."): value for name, value in Net().state_dict().items()}
    assert "rename={'features.0.': 'body.'}" in error_of(Net(), state)


# ---- kinds of numbers, devices ----------------------------------------------------------------------------------


def test_another_kind_of_number_is_converted_only_if_asked():
    theirs, model = Net(seed=1).half(), Net(seed=2)
    before = copy_of(model)
    message = error_of(model, theirs.state_dict(), partial=True)
    assert "body.weight is float16 in the given state_dict and float32 in the model (and 7 more)" in message
    assert "cast=True" in message and unchanged(model, before)
    told = load_weights(model, theirs.state_dict(), cast=True)
    assert torch.equal(model.body.weight, theirs.body.weight.float()) and len(told.cast) == 8
    assert "8 converted" in str(told) and model.body.weight.dtype == torch.float32
    state = dict(Net().state_dict(), **{"norm.num_batches_tracked": torch.tensor(1.5)})
    assert "cannot be converted without loss" in error_of(model, state, cast=True)


def test_weights_that_were_saved_elsewhere_come_to_where_the_model_is(tmp_path):
    theirs, model = Net(seed=1), Net(seed=2)
    load_weights(model, write(tmp_path / "w.pt", theirs.state_dict()), map_location="cpu")
    assert same(model, theirs)
    assert "meta device" in error_of(Net().to("meta"), theirs.state_dict())
    assert "lazy" in error_of(nn.Sequential(nn.LazyLinear(3)), theirs.state_dict())


def test_a_mapped_file_is_not_written_to_by_training(tmp_path):
    path = write(tmp_path / "w.safetensors", Net(seed=1).state_dict())
    data = pathlib.Path(path).read_bytes()
    model = Net()
    load_weights(model, path)
    with torch.no_grad():
        model.body.weight.add_(1.0)
    assert pathlib.Path(path).read_bytes() == data


def test_hooks_and_extra_state_of_a_module_are_respected():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"count": getattr(self, "count", 0)}

        def set_extra_state(self, state):
            self.count = state["count"]

    theirs, model = Counting(2, 2), Counting(2, 2)
    theirs.count = 5
    load_weights(model, theirs.state_dict())
    assert model.count == 5 and same_tensors(model, theirs)


def same_tensors(model, theirs):
    return torch.equal(model.weight, theirs.weight) and torch.equal(model.bias, theirs.bias)


def test_a_checkpoint_is_restored_over_what_was_loaded_before(tmp_path, monkeypatch):
    monkeypatch.delenv("GPUSCHED_JOB_DIR", raising=False)

    def train(steps):
        model = nn.Linear(2, 2)
        load_weights(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
        run, seen = Run(model=model, directory=tmp_path, every_steps=1, behind=False), []
        for _ in run.epochs(1):
            for _ in run.batches(range(4)):
                seen.append(float(model.weight.detach()[0, 0]))
                with torch.no_grad():
                    model.weight.add_(1.0)
                run.step()
                if run.steps == steps:
                    return seen
        return seen

    assert train(2) == [1.0, 2.0]
    gc.collect()  # the first Run's lock goes with it
    assert train(4) == [3.0, 4.0]
