"""Checkpoints that version 0.1 wrote (format 1: state.json with one flat tree, tensors.pt) are still continued."""

import hashlib
import json
import os
import time

import pytest
import torch

from gpusched.checkpoint import Run
from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.plain import encode
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.state import randomness

POSITION = {
    "phase": 0, "epoch": 1, "steps": 6, "base": 0, "batch": 2,
    "calls": [{"count": 2, "done": False, "steps": 2, "entered": True, "open_batch": False}],
}  # fmt: skip


def write_format_1(directory, step, tree, tensors=None):
    """As the library of that time did it."""
    table = {}
    parts = {"parts/" + key: value for key, value in tree.get("parts", {}).items()}
    rest = {key: value for key, value in tree.items() if key != "parts"}
    plain = {key: encode(value, table, key.replace("parts/", "")) for key, value in {**rest, **parts}.items()}
    folder = os.path.join(directory, f"step-{step}")
    os.makedirs(folder)
    with open(os.path.join(folder, "state.json"), "w") as file:
        json.dump(plain, file, allow_nan=False)
    torch.save(table if tensors is None else tensors, os.path.join(folder, "tensors.pt"))
    entries = {}
    for name in ("state.json", "tensors.pt"):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        entries[name] = {"size": len(data), "checksum": "sha256:" + hashlib.sha256(data).hexdigest()}
    manifest = {"epoch": 1, "batch": 2, "format": 1, "step": step, "created_at": time.time(), "files": entries}
    manifest.update(seconds=0.1, parent="", environment={})
    seal = "sha256:" + hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        json.dump(dict(manifest, seal=seal), file)
    return folder


def flat_tree(**parts):
    return {
        "values": {"seen": [1, 2]},
        "rng": randomness.capture(),
        "rng_epoch": randomness.capture(),
        "position": POSITION,
        "seed": 9,
        "parts": parts,
    }


def test_its_flat_tree_is_read_as_two_halves(tmp_path):
    weight = torch.randn(3, 4)
    write_format_1(
        str(tmp_path), 6, flat_tree(model={"w": weight, "tied": weight}, metrics={"sum": 1.5}, extra={"n": 3})
    )
    found, tree, owners = Vault(str(tmp_path), 3, print).load()
    assert found.good and (found.step, found.epoch, found.batch, owners) == (6, 1, 2, 1)
    assert set(tree["shared"]) == {"position", "seed", "parts"} and set(tree["shared"]["parts"]) == {"model"}
    assert torch.equal(tree["shared"]["parts"]["model"]["w"], weight)
    assert set(tree["own"]["parts"]) == {"metrics", "extra"} and tree["own"]["values"] == {"seen": [1, 2]}


def test_a_run_goes_on_from_it_and_its_next_checkpoint_is_of_today(tmp_path):
    model = torch.nn.Linear(2, 3)
    weight = torch.randn(3, 2)
    write_format_1(str(tmp_path), 6, flat_tree(model={"weight": weight, "bias": torch.zeros(3)}))
    run = Run(model=model, directory=str(tmp_path), environment="any")
    seen = []
    for epoch in run.epochs(2):
        for number in run.batches(range(4)):
            seen.append((epoch, number))
            run.step()
    assert len(seen) == 2 and {epoch for epoch, _ in seen} == {1} and run.steps == 8
    assert torch.equal(model.weight, weight) and run.seed == 9 and run.values == {"seen": [1, 2]}
    newest = files.list_checkpoints(str(tmp_path), checksums=True)[-1]
    assert newest.good and newest.manifest["format"] == 2 and "tensors.safetensors" in newest.manifest["files"]


class Innocent:
    ran = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Innocent.ran = True


def test_code_in_its_pickle_is_not_run_and_the_person_is_told(tmp_path):
    told = []
    write_format_1(str(tmp_path), 6, flat_tree(), tensors={"t": Innocent()})
    with pytest.raises(CheckpointError, match="None of the 1"):
        Vault(str(tmp_path), 3, told.append).load()
    assert not Innocent.ran
    assert "holds something else than tensors, perhaps code. It has not been run" in told[0]


def test_its_damage_is_noticed(tmp_path):
    told = []
    folder = write_format_1(str(tmp_path), 6, flat_tree(model={"w": torch.zeros(1000)}))
    with open(os.path.join(folder, "tensors.pt"), "r+b") as file:
        file.seek(2000)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match="None of the 1"):
        Vault(str(tmp_path), 3, told.append).load()
    assert "tensors.pt is damaged" in told[0]
