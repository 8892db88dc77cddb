"""One checkpoint of all ranks, with threads for ranks: what fails on one fails on all, and nothing remains of it."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.stream import write_bytes
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks import group, talk, together

SIZE = 3


class Threads:
    """Ranks that are threads of this process."""

    size = SIZE

    def __init__(self, rank, table, barrier):
        self.rank, self._table, self._barrier = rank, table, barrier

    def gather(self, value):
        self._table[self.rank] = value
        self._barrier.wait(30)
        found = [self._table[rank] for rank in range(SIZE)]
        self._barrier.wait(30)
        return found


def on_all(action):
    """The results of an action on every rank; an exception counts as one."""
    table, barrier = {}, threading.Barrier(SIZE)

    def one(rank):
        try:
            return action(Threads(rank, table, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(one, range(SIZE)))


def saving(directory, write=None):
    def write_one(rank, folder):
        name = f"own-{rank}.json"
        return {name: write_bytes(os.path.join(folder, name), b"%d" % rank)}

    def save(ranks):
        begin = lambda: files.Draft(str(directory))  # noqa: E731
        return together.save(ranks, begin, lambda folder: (write or write_one)(ranks.rank, folder), 7, {"epoch": 1})

    return save


def test_all_ranks_publish_one_checkpoint_with_the_files_of_all(tmp_path):
    found = on_all(saving(tmp_path))
    assert [one.path for one in found] == [str(tmp_path / "step-7")] * SIZE
    (listed,) = files.list_checkpoints(str(tmp_path), checksums=True)
    assert listed.good and sorted(listed.manifest["files"]) == ["own-0.json", "own-1.json", "own-2.json"]
    assert os.listdir(tmp_path) == ["step-7"]


def test_an_error_of_the_disk_on_one_rank_is_an_error_with_the_same_number_on_all(tmp_path):
    def write(rank, folder):
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return {}

    found = on_all(saving(tmp_path, write))
    assert [type(error) for error in found] == [OSError] * SIZE
    assert [error.errno for error in found] == [errno.ENOSPC] * SIZE
    assert "(rank 1)" in str(found[0]) and "(rank" not in str(found[1])
    assert os.listdir(tmp_path) == []


def test_all_ranks_go_by_the_error_of_the_first_that_had_one(tmp_path):
    def write(rank, folder):
        raise OSError(errno.EIO if rank == 0 else errno.ENOSPC, "trouble")

    assert [error.errno for error in on_all(saving(tmp_path, write))] == [errno.EIO] * SIZE


def test_what_cannot_be_stored_on_one_rank_names_that_rank_elsewhere():
    def action(ranks):
        def encode():
            if ranks.rank == 2:
                raise CheckpointError("extra.file is an open file.", "Leave it out.")
            return ranks.rank

        return together.each(ranks, encode)

    found = on_all(action)
    assert found[2].message == "extra.file is an open file."
    assert found[0].message == found[1].message == "On rank 2: extra.file is an open file."
    assert found[0].hint == "Leave it out."


def test_each_rank_gets_its_own_result_back():
    assert on_all(lambda ranks: together.each(ranks, lambda: {ranks.rank})) == [{0}, {1}, {2}]


def test_a_draft_that_cannot_be_made_is_an_error_on_all_ranks(tmp_path):
    (tmp_path / "file").write_text("")
    found = on_all(saving(tmp_path / "file"))
    assert all(isinstance(error, OSError) for error in found)


def test_one_process_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = group.find()
    assert alone is group.ALONE and (alone.rank, alone.size) == (0, 1)
    assert [alone.agree(wish, 3, "step") for wish in (0, 1, 2)] == [0, 1, 2]
    assert alone.gather("x") == ["x"] and alone.broadcast("x") == "x" and alone.behind.gather(1) == [1]


def test_a_rank_that_nobody_connected_is_refused_only_where_something_is_saved(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(CheckpointError, match=r"one of 3 ranks .* not initialized yet"):
        group.find()
    assert group.find(needed=False) is group.ALONE


@pytest.mark.parametrize("text", ["soon", "-1", "0"])
def test_the_patience_with_other_ranks_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(talk.ENV_TIMEOUT, text)
    with pytest.raises(CheckpointError, match="is not a time in seconds"):
        talk.patience()
    monkeypatch.setenv(talk.ENV_TIMEOUT, "90")
    assert talk.patience() == 90.0
