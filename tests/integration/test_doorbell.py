"""The doorbell: calls back with the attempt that rang, and ignores everything else."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
from attempts import until

from gpusched import rundir
from gpusched.launch.doorbell import Doorbell, attempt_key
from gpusched.model.job import AttemptKey


def ring(path: Path, *texts: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell, rundir.unix_address(str(path)) as address:
        for text in texts:
            bell.sendto(text, address)


@pytest.mark.parametrize(
    "text",
    ["", "42", "42-", "-1", "42-0", "0-1", "042-1", "42-01", "42-1\n", " 42-1", "../1-1", "٤-1", "1-1-1", "1" * 19],
)
def test_what_is_no_attempt_is_not_read_as_one(text: str) -> None:
    assert attempt_key(text) is None


def test_keys_are_read_back() -> None:
    for key in (AttemptKey(1, 1), AttemptKey(10**17, 10**8)):
        assert attempt_key(str(key)) == key


async def test_rings_arrive_and_rubbish_does_not(tmp_path: Path) -> None:
    heard: list[AttemptKey] = []
    bell = Doorbell(tmp_path / "bell", heard.append)
    bell.open()
    try:
        ring(tmp_path / "bell", b"42-1", b"\xff\xfe", b"", b"x" * 5000, b"1-2 ", b"7-3")
        await until(lambda: len(heard) >= 2)
        assert heard == [AttemptKey(42, 1), AttemptKey(7, 3)]
        assert stat.S_IMODE((tmp_path / "bell").stat().st_mode) == 0o600
    finally:
        bell.close()
    bell.close()
    assert not (tmp_path / "bell").exists()


async def test_a_file_that_an_earlier_daemon_left_is_replaced(tmp_path: Path) -> None:
    heard: list[AttemptKey] = []
    first, second = Doorbell(tmp_path / "bell", heard.append), Doorbell(tmp_path / "bell", heard.append)
    first.open()
    second.open()
    try:
        ring(tmp_path / "bell", b"1-1")
        await until(lambda: heard)
    finally:
        second.close()
        first.close()


async def test_a_path_longer_than_an_address_can_be_bound(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    heard: list[AttemptKey] = []
    bell = Doorbell(deep / "bell", heard.append)
    bell.open()
    try:
        ring(deep / "bell", b"5-6")
        await until(lambda: heard == [AttemptKey(5, 6)])
    finally:
        bell.close()
    assert not (deep / "bell").exists()


async def test_a_callback_may_close_the_bell(tmp_path: Path) -> None:
    heard: list[AttemptKey] = []

    def once(key: AttemptKey) -> None:
        heard.append(key)
        bell.close()

    bell = Doorbell(tmp_path / "bell", once)
    bell.open()
    ring(tmp_path / "bell", b"1-1", b"1-2")
    await until(lambda: heard)
    assert heard == [AttemptKey(1, 1)]


def test_a_long_path_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), rundir.unix_address(str(tmp_path / ("d" * 120) / "bell")):
        pass
