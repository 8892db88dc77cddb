"""Whatever happens to a checkpoint directory: training goes on, nothing is lost, and a sentence says what to do."""

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from gpusched.checkpoint.disk import contents, files
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError


def tree(step, **values):
    parts = {"model": {"weight": torch.full((300,), float(step))}}
    return {"shared": {"position": {"steps": step}, "seed": 1, "parts": parts}, "own": {"values": values, "parts": {}}}


@pytest.fixture
def told():
    return []


@pytest.fixture
def vault(tmp_path, told):
    vault = Vault(str(tmp_path / "run" / "checkpoints"), 3, told.append)
    vault.claim()
    yield vault
    vault.release()


def reseal(path, change):
    """Edit a manifest as somebody would who knows how it is sealed."""
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    change(manifest)
    manifest["seal"] = files.seal_of(manifest)
    (Path(path) / "manifest.json").write_text(json.dumps(manifest))


def add(path, name, data):
    """Smuggle a file into a checkpoint, and into its manifest."""
    (Path(path) / name).parent.mkdir(exist_ok=True)
    (Path(path) / name).write_bytes(data)
    entry = files.hash_and_sync(str(Path(path) / name))
    reseal(path, lambda manifest: manifest["files"].update({name: entry}))


# the directory


def test_a_directory_that_vanishes_is_made_again_by_the_next_save(vault, told):
    vault.save(tree(1), {})
    shutil.rmtree(Path(vault.directory).parent)
    assert vault.save(tree(2), {}).good
    assert told == [f"the checkpoint directory {vault.directory} had vanished and was made again"]
    vault.save(tree(3), {})
    assert len(told) == 1


def test_a_directory_that_vanishes_while_it_is_written_costs_only_this_save(vault, monkeypatch):
    write = contents.write_halves

    def vanish(folder, *rest):
        shutil.rmtree(vault.directory)
        return write(folder, *rest)

    monkeypatch.setattr(contents, "write_halves", vanish)
    with pytest.raises(OSError) as caught:
        vault.save(tree(1), {})
    assert "there is no earlier one" in vault.why_not(caught.value)
    monkeypatch.undo()
    assert vault.save(tree(2), {}).good


def test_a_disk_that_was_unmounted_is_not_written_beside(vault, monkeypatch):
    shutil.rmtree(vault.directory)
    monkeypatch.setattr(files, "device_of", lambda path: -1)
    with pytest.raises(CheckpointError, match="so is the disk") as caught:
        vault.save(tree(1), {})
    assert "Mount it again" in vault.why_not(caught.value)
    assert not os.path.exists(vault.directory)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_nothing_can_be_written_training_goes_on_and_this_is_told(tmp_path, monkeypatch, told, number):
    """(Root may write anywhere, so the refusal is made here.)"""
    place = tmp_path / "c"
    Vault(str(place), 3, print).save(tree(5), {})
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest, **more)

    def refuse_directory(path, *rest, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", refuse_directory)
    vault = Vault(str(place), 3, told.append)
    vault.claim()
    assert len(told) == 1 and "NOTHING CAN BE SAVED" in told[0] and "let this user write there" in told[0]
    assert vault.load()[0].step == 5
    with pytest.raises(OSError) as caught:
        vault.save(tree(6), {})
    assert "let this user write there" in vault.why_not(caught.value)
    assert "the last good one is step-5" in vault.why_not(caught.value)


def test_a_file_where_the_directory_should_be_is_told(tmp_path, told):
    (tmp_path / "c").write_text("")
    Vault(str(tmp_path / "c"), 3, told.append).claim()
    assert "NOTHING CAN BE SAVED" in told[0]


def test_what_killed_processes_left_is_cleared_when_the_directory_is_claimed(tmp_path):
    (tmp_path / ".tmp-1-aa").mkdir()  # pid 1 lives, but it cannot be saving: we hold the lock
    (tmp_path / ".trash-1-bb").mkdir()
    Vault(str(tmp_path), 3, print).claim()
    assert os.listdir(tmp_path) == [".lock"]


# what is in it


def test_code_that_was_smuggled_in_is_refused_and_the_one_before_is_taken(vault, told):
    vault.save(tree(1), {})
    add(vault.save(tree(2), {}).path, "weights.pkl", b"cos\nsystem\n(S'true'\ntR.")
    assert vault.load()[0].step == 1
    assert "weights.pkl, a kind of file that may contain code" in told[0]


def test_a_file_beside_that_is_not_ours_is_not_read_and_this_is_told(vault, told):
    path = vault.save(tree(1), {}).path
    (Path(path) / "notes.pkl").write_text("x")
    assert vault.load()[0].step == 1
    assert told == ["step-1 holds notes.pkl, which gpusched did not write; it is not read"]


@pytest.mark.parametrize("name", ["own-7.json", "own-7.safetensors", "shards/shared-0.json", "tensors.pt"])
def test_data_that_the_manifest_does_not_list_is_refused(vault, told, name):
    vault.save(tree(1), {})
    path = Path(vault.save(tree(2), {}).path)
    (path / "shards").mkdir(exist_ok=True)
    (path / name).write_text("{}")
    assert vault.load()[0].step == 1
    assert name in told[0] and "does not list" in told[0]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b/c", ".hidden", "a//b", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(vault, told, name):
    vault.save(tree(1), {})
    entry = {"size": 0, "checksum": "sha256:"}
    reseal(vault.save(tree(2), {}).path, lambda manifest: manifest["files"].update({name: entry}))
    assert vault.load()[0].step == 1
    assert "is not a file of a checkpoint" in told[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(files=3),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest["files"].update({"state.json": {}}),
        lambda manifest: manifest.update(created_at="yesterday"),
        lambda manifest: manifest.update(epoch=[1]),
        lambda manifest: manifest.update(format="2"),
    ],
)
def test_a_manifest_of_nonsense_is_a_damaged_one_though_its_seal_is_right(vault, told, change):
    vault.save(tree(1), {})
    reseal(vault.save(tree(2), {}).path, change)
    assert vault.load()[0].step == 1
    assert "manifest is damaged" in told[0]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "own-0.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_to_any_file_is_noticed_and_the_one_before_is_taken(vault, told, name, damage):
    vault.save(tree(1), {})
    path = Path(vault.save(tree(2), {}).path) / name
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    assert vault.load()[0].step == 1
    assert "step-2" in told[0] and name in told[0]


def test_a_rank_that_did_not_save_gets_what_the_first_one_had(tmp_path):
    for rank in (0, 1):
        contents.write_own(str(tmp_path), rank, {"shared": {}, "own": {"values": {"rank": rank}}})
    contents.write_shared(str(tmp_path), {"shared": {"seed": 4}})
    got = [contents.read(str(tmp_path), rank) for rank in (0, 1, 2)]
    assert [tree["own"]["values"]["rank"] for tree, _ in got] == [0, 1, 0]
    assert {owners for _, owners in got} == {2} and got[2][0]["shared"] == {"seed": 4}


def test_a_checkpoint_without_tensors_needs_no_torch_to_be_read(tmp_path):
    plain = {"shared": {"position": {"steps": 3}, "parts": {}}, "own": {"values": {"a": (1, 2.5)}}}
    Vault(str(tmp_path), 3, print).save(plain, {})
    program = (
        "import sys\nfrom gpusched.checkpoint.disk.vault import Vault\n"
        "print(Vault(sys.argv[1], 3, print).load()[1])\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([os.sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "{'a': (1, 2.5)}" in done.stdout, done.stderr


# keeping


def test_of_every_so_many_steps_the_first_one_stays(tmp_path):
    vault = Vault(str(tmp_path), 2, print, keep_every_steps=100)
    for step in (30, 99, 101, 160, 203, 250, 299, 420, 421, 422):
        vault.save(tree(step), {})
        vault.tidy()
    assert [found.step for found in files.list_checkpoints(str(tmp_path))] == [101, 203, 420, 421, 422]


def test_a_milestone_that_is_torn_is_replaced_by_the_next_one(tmp_path):
    vault = Vault(str(tmp_path), 1, print, keep_every_steps=100)
    (Path(vault.save(tree(100), {}).path) / "state.json").unlink()
    for step in (110, 120, 130):
        vault.save(tree(step), {})
    vault.tidy()
    assert [found.step for found in files.list_checkpoints(str(tmp_path)) if found.good] == [110, 130]


def test_one_that_only_a_checksum_shows_to_be_damaged_never_counts_as_the_last_good_one(tmp_path):
    for step in (1, 5):
        path = Path(Vault(str(tmp_path), 3, print).save(tree(step), {}).path) / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"steps":5', b'"steps":6'))
    vault = Vault(str(tmp_path), 1, lambda sentence: None)
    assert vault.load()[0].step == 1
    for step in (2, 3):
        vault.save(tree(step), {})
        vault.tidy()
    assert Vault(str(tmp_path), 1, lambda sentence: None).load()[0].step == 3


def test_a_pinned_checkpoint_is_never_deleted(tmp_path):
    vault = Vault(str(tmp_path), 1, print)
    for step in (1, 2, 3):
        vault.save(tree(step), {})
    files.pin(str(tmp_path), "step-1")
    vault.tidy()
    assert [found.step for found in files.list_checkpoints(str(tmp_path))] == [1, 3]
    assert files.pins(str(tmp_path)) == {"step-1"}
    files.pin(str(tmp_path), "step-1", pinned=False)
    vault.tidy()
    assert [found.step for found in files.list_checkpoints(str(tmp_path))] == [3]


def test_a_file_of_pins_that_is_damaged_pins_nothing(tmp_path):
    (tmp_path / ".pins.json").write_text('{"pins": {"a": 1}}')
    assert files.pins(str(tmp_path)) == set()


def test_memory_for_snapshots_can_be_had_ahead_of_the_first(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    vault.prepare(tree(1))
    for _ in range(6000):
        if vault._arena.size:
            break
        time.sleep(0.01)
    assert vault._arena.size > 300
    vault.save_behind(tree(1), {})
    assert vault.settle().checkpoint.good
    vault.release()
