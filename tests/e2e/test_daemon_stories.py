"""The daemon itself: started by the first command, only one per state, and honest when its disk or database is not."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from daemons import COMMAND, JOBS, Place, a_daemon, alive, until

from gpusched.model.errors import Degraded


@pytest.fixture
def empty(tmp_path, zygote) -> Iterator[Place]:
    """A place whose daemon is started by commands; its devices come from its configuration."""
    place = Place(tmp_path / "p", zygote, config='devices = "sim:2x8G"\n')
    place.env["GPUSCHED_AUTOSTART"] = "1"
    place.log = place.state / "daemon.log"
    yield place
    status = place.answers()
    assert status, place.read_log()
    place.pid = status["pid"]
    place.close()


def daemons_of(place: Place) -> list[int]:
    """Daemon processes on this state directory."""
    wanted = f"gpusched.daemon\0--state-dir\0{place.state}\0".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if wanted in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
    return found


def test_two_commands_that_need_a_daemon_at_the_same_moment_get_one(empty):
    commands = [
        subprocess.Popen(
            [*COMMAND, "submit", "--parsable", "-g", "0", "true"], cwd=empty.work, env=empty.env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [command.communicate(timeout=60) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    keys = sorted(out.strip() for out, _ in said)
    assert keys == ["1", "2"]
    assert any("starting a personal one" in err for _, err in said)
    until(lambda: daemons_of(empty) == [empty.client.status()["pid"]], lambda: daemons_of(empty))
    for key in keys:
        assert empty.ended(key)["state"] == "COMPLETED"
    # and one more, by hand, on the same state, is refused
    second = empty.cli("daemon", "run", "--devices", "sim:1x1G")
    assert second.code == 1
    assert f"another daemon (process {daemons_of(empty)[0]}) already works on" in second.err
    assert empty.client.status()["devices"]["total"] == 2
    assert empty.cli("daemon", "status").code == 0


def test_stop_leaves_jobs_running_and_start_finds_them(own):
    gate = own.work / "gate"
    key = own.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 6", gpus=1)
    pid = own.running(key)["pid"]
    stopped = own.cli("daemon", "stop")
    assert stopped.code == 0 and "1 running job left running" in stopped.out
    own.wait_gone()
    assert own.cli("queue").code == 69  # no daemon, and starting one is switched off here
    gate.touch()
    own.start()
    job = own.ended(key)
    assert (job["exit_code"], job["attempt"], job["attempts"][0]["pid"]) == (6, 1, pid)


def test_stop_with_ask_jobs_has_them_save_and_the_next_daemon_goes_on_with_them(own):
    key = own.submit("bash", str(JOBS / "count.sh"), "20", "0.1", gpus=1)
    until(lambda: "3\n" in own.output(key), lambda: own.story(key))
    pid = own.job(key)["pid"]
    assert own.cli("daemon", "stop", "--ask-jobs").code == 0
    own.wait_gone()
    until(lambda: not alive(pid), "the end of the job, which saves")
    own.start()
    job = own.ended(key)
    assert (job["state"], job["attempt"], job["attempts"][0]["outcome"]["code"]) == ("COMPLETED", 2, 85)
    assert [line for line in own.output(key).splitlines() if line.isdigit()] == [str(n) for n in range(1, 21)]


def test_run_survives_a_restart_of_the_daemon(own):
    gate = own.work / "gate"
    script = f"echo before; while [ ! -e {gate} ]; do sleep 0.02; done; echo after; exit 9"
    with subprocess.Popen(
        [*COMMAND, "run", "-g", "0", "sh", "-c", script], cwd=own.work, env=own.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout.readline() == b"before\n"
        own.restart()
        gate.touch()
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (9, b"after\n"), err


# ---- bad surroundings -------------------------------------------------------------------------------------------


def refused_start(place: Place) -> str:
    """What the daemon says that does not start."""
    place.log.unlink()
    place.start()
    assert not alive(place.pid)
    assert "Traceback" not in place.read_log()
    return place.read_log()


@pytest.fixture
def stopped(tmp_path, zygote) -> Place:
    """A place whose daemon has worked and was stopped."""
    place = Place(tmp_path / "p", zygote).start()
    place.sh("true", hold=True)
    place.stop()
    return place


def test_a_database_of_a_newer_version_is_left_alone_with_a_sentence(stopped):
    database = stopped.state / "gpusched.sqlite"
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("PRAGMA user_version = 4711")
    before = database.read_bytes()
    assert "written by a newer gpusched" in refused_start(stopped)
    assert database.read_bytes() == before


def test_a_damaged_database_is_left_alone_with_a_sentence(stopped):
    database = stopped.state / "gpusched.sqlite"
    database.write_bytes(b"this is no database " * 500)
    assert "damaged or is not a job database" in refused_start(stopped)
    assert database.read_bytes().startswith(b"this is no database")


def test_a_daemon_of_another_protocol_is_told_apart_in_a_sentence(tmp_path, zygote):
    place = Place(tmp_path / "p", zygote)
    place.state.mkdir(mode=0o700)
    answer = b'{"from": "the future"}'
    head = f"HTTP/1.1 200 OK\r\nGpusched-Version: 9.9\r\nGpusched-Api: 99\r\nContent-Length: {len(answer)}\r\n\r\n"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(place.state / "gpusched.sock"))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head.encode() + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        said = place.cli("queue")
        thread.join()
    assert said.code == 1 and "gpusched 9.9 (protocol 99)" in said.err and "daemon stop" in said.err
    place.client.close()


# ---- a full disk ------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(at: Path) -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "gpusched-test", str(at)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.fixture
def on_small_disk(tmp_path, zygote) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    with small_disk(tmp_path / "p" / "s"):
        place = Place(tmp_path / "p", zygote)
        place.expected = "nothing of this batch was recorded|no new jobs are taken"
        try:
            yield place.start()
        finally:
            place.close()


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    with open(path, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")


def until_refused(place: Place) -> Degraded:
    """Submit until the database has no room any more."""
    for number in range(2000):
        try:
            place.sh("true", gpus=0, hold=True, comment="x" * 1000, env={"PAD": f"{number}" * 10_000})
        except Degraded as refused:
            return refused
    raise AssertionError("the disk never got full")


def test_on_a_full_disk_running_jobs_end_and_are_recorded_and_new_ones_are_refused(on_small_disk):
    place = on_small_disk
    gates = [place.work / f"gate-{n}" for n in range(2)]
    keys = [place.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit {n}", gpus=1) for n, gate in enumerate(gates)]
    for key in keys:
        place.running(key)
    fill(place.state / "filler")
    error = until_refused(place)
    assert "disk is full" in error.message and error.hint
    assert place.client.status()["degraded"]
    said = place.cli("submit", "true")
    assert said.code == 1 and "no new jobs are taken" in said.err, said
    gates[1].touch()
    assert place.ended(keys[1])["exit_code"] == 1  # recorded, in the room that was kept for it
    place.restart()  # and still known after a crash in this state
    assert place.job(keys[1])["exit_code"] == 1 and place.state_of(keys[0]) == "RUNNING"
    with pytest.raises(Degraded):
        place.sh("true", gpus=1)
    assert place.client.cancel([keys[0]])[0]["ok"]
    assert place.ended(keys[0])["state"] == "CANCELLED"
    (place.state / "filler").unlink()
    until(lambda: place.client.status()["degraded"] is None, lambda: place.client.status())
    key = place.sh("exit 4", gpus=1)
    assert place.ended(key)["exit_code"] == 4


def test_a_machine_without_devices_says_so_and_runs_what_needs_none(tmp_path, zygote):
    with a_daemon(tmp_path / "p", zygote, devices="nvml", config='nvml_library = "/no/such/library.so"\n') as place:
        assert place.client.status()["devices"]["total"] == 0
        assert "/no/such/library.so" in place.read_log()
        assert "/no/such/library.so" in place.client.status()["devices"]["error"]
        assert place.ended(place.sh("exit 2", gpus=0))["exit_code"] == 2
        assert "gpu" in place.cli("doctor").out.lower()
