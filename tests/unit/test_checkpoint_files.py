"""Checkpoints on disk: only whole ones count, the last good one stays. No torch here."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.errors import CheckpointError


def put(directory, step, data=b"x" * 1000):
    def write(folder):
        (Path(folder) / "data").write_bytes(data)

    return files.publish(str(directory), step, write, {"epoch": step // 10, "batch": step % 10})


def tree(step, **values):
    position = {"steps": step, "epoch": 0, "batch": step}
    return {"shared": {"position": position, "parts": {}}, "own": {"values": values, "parts": {}}}


def names(directory, checksums=True):
    return [(found.name, found.good) for found in files.list_checkpoints(str(directory), checksums)]


def test_a_published_checkpoint_is_listed_with_all_that_its_manifest_says(tmp_path):
    put(tmp_path / "new", 23)
    (found,) = files.list_checkpoints(str(tmp_path / "new"), checksums=True)
    assert (found.name, found.step, found.epoch, found.batch) == ("step-23", 23, 2, 3)
    assert (found.size, found.good) == (1000, True)


def test_a_directory_that_does_not_exist_has_no_checkpoints(tmp_path):
    assert files.list_checkpoints(str(tmp_path / "absent")) == []


def test_checkpoints_are_ordered_by_number_and_not_by_name(tmp_path):
    for step in (9, 100, 10):
        put(tmp_path, step)
    assert [found.step for found in files.list_checkpoints(str(tmp_path))] == [9, 10, 100]


def test_a_step_saved_again_gets_a_name_of_its_own_and_wins(tmp_path):
    put(tmp_path, 5, b"first")
    put(tmp_path, 5, b"second")
    assert names(tmp_path) == [("step-5", True), ("step-5.1", True)]
    assert next(files.newest_good(str(tmp_path))).name == "step-5.1"
    assert (tmp_path / "step-5" / "data").read_bytes() == b"first"


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda path: (path / "manifest.json").unlink(), "no manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest is unreadable"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest is unreadable"),
        (lambda path: edit_manifest(path, epoch=7), "manifest is damaged"),
        (lambda path: (path / "data").unlink(), "cannot be read"),
        (lambda path: (path / "data").write_bytes(b"x" * 999), "999 bytes instead of 1000"),
        (lambda path: (path / "data").write_bytes(b"x" * 500 + b"y" + b"x" * 499), "checksum does not match"),
    ],
)
def test_a_damaged_checkpoint_is_found_out_and_the_one_before_it_wins(tmp_path, damage, problem):
    put(tmp_path, 1)
    damage(Path(put(tmp_path, 2).path))
    worse, good = list(files.newest_good(str(tmp_path)))
    assert problem in worse.problem
    assert good.good and good.step == 1


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(dict(manifest, **changes)))


def test_only_the_newest_are_kept_and_what_dead_processes_left_is_cleared(tmp_path):
    for step in range(1, 6):
        put(tmp_path, step)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".tmp-{dead.pid}-aa").mkdir()
    (tmp_path / f".trash-{os.getpid()}-bb").mkdir()
    (tmp_path / ".tmp-1-cc").mkdir()  # pid 1 lives: perhaps it is saving now
    (tmp_path / "notes").write_text("the user's own")
    files.prune(str(tmp_path), keep=2)
    assert sorted(os.listdir(tmp_path)) == [".tmp-1-cc", "notes", "step-4", "step-5"]


def test_pruning_never_deletes_the_last_good_one_whatever_is_newer(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 2)
    for step in (3, 4, 5):
        (Path(put(tmp_path, step).path) / "manifest.json").unlink()
    files.prune(str(tmp_path), keep=1)
    assert [name for name, good in names(tmp_path) if good] == ["step-2"]


def test_a_save_that_fails_leaves_nothing_of_itself(tmp_path):
    put(tmp_path, 1)

    def write(folder):
        (Path(folder) / "data").write_bytes(b"half")
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError):
        files.publish(str(tmp_path), 2, write, {})
    assert os.listdir(tmp_path) == ["step-1"]


def test_the_vault_skips_torn_checkpoints_and_says_so(tmp_path):
    told = []
    vault = Vault(str(tmp_path), 3, told.append)
    vault.save(tree(1, best=0.5), {})
    newer = vault.save(tree(2, best=0.7), {})
    os.truncate(os.path.join(newer.path, "state.json"), 10)
    found, loaded, owners = Vault(str(tmp_path), 3, told.append).load()
    assert found.step == 1 and loaded["own"]["values"] == {"best": 0.5} and owners == 1
    assert len(told) == 1 and "step-2" in told[0] and "bytes instead of" in told[0]


def test_a_run_never_starts_from_zero_when_every_checkpoint_is_damaged(tmp_path):
    saved = Vault(str(tmp_path), 3, print).save(tree(1), {})
    os.unlink(os.path.join(saved.path, "state.json"))
    with pytest.raises(CheckpointError, match="None of the 1 checkpoint"):
        Vault(str(tmp_path), 3, lambda sentence: None).load()


def test_a_checkpoint_of_a_newer_gpusched_is_refused_and_not_skipped(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    vault.save(tree(1), {})
    edit_manifest(Path(vault.save(tree(2), {}).path), format=3)
    with pytest.raises(CheckpointError, match="newer gpusched"):
        Vault(str(tmp_path), 3, print).load()
    files.prune(str(tmp_path), keep=1)
    assert (tmp_path / "step-2").exists()


def test_a_manifest_names_its_parent(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    vault.save(tree(1), {})
    assert vault.save(tree(2), {}).manifest["parent"] == "step-1"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_older_checkpoints_make_room_and_the_last_good_one_stays(small_disk):
    told = []
    vault = Vault(str(small_disk), 3, told.append)
    for step in (1, 2, 3):
        vault.save(tree(step, blob="x" * 250_000), {})
    vault.save(tree(4, blob="x" * 700_000), {})
    assert names(small_disk) == [("step-3", True), ("step-4", True)]
    assert "deleted 2 older" in told[0]
    with pytest.raises(OSError) as caught:
        vault.save(tree(5, blob="x" * 1_200_000), {})
    assert names(small_disk) == [("step-4", True)]
    assert "MiB free" in vault.why_not(caught.value) and "step-4" in vault.why_not(caught.value)
    assert not list(small_disk.glob(".tmp-*"))
