"""A daemon over its years: other settings, fewer devices, an empty database, no free descriptors, many who wait."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from daemons import FINAL, Place, a_daemon, until

from gpusched.client import Client
from gpusched.model.errors import Unavailable


@pytest.fixture
def quiet(tmp_path: Path, zygote: Any) -> Any:
    """A daemon that reads its devices at its start and at the ends of jobs only."""
    with a_daemon(tmp_path / "p", zygote, config="") as place:
        place.config.write_text("sample_interval = 3600\n")
        place.restart()
        yield place


def sockets(place: Place) -> int:
    """How many sockets the daemon has open: one more for each who waits."""
    names = (os.readlink(f"/proc/{place.pid}/fd/{name}") for name in os.listdir(f"/proc/{place.pid}/fd"))
    return sum(name.startswith("socket:") for name in names)


def test_after_a_restart_no_process_of_our_jobs_is_taken_for_a_stranger(quiet: Place) -> None:
    key = quiet.sh("exec sleep 600", gpus=1)
    quiet.running(key)
    quiet.restart()
    (busy,) = [device for device in quiet.client.devices()["devices"] if device["jobs"]]
    assert (busy["foreign"], busy["foreign_mib"], busy["state"]) == ([], 0, "busy")
    assert [holder["used_mib"] is not None for holder in busy["jobs"]] == [True]


def test_a_database_that_was_put_aside_gives_no_id_and_no_checkpoint_a_second_time(own: Place) -> None:
    old = own.sh("echo mine > $GPUSCHED_CHECKPOINT_DIR/weights", gpus=0)
    own.ended(old)
    own.stop()
    for file in own.state.glob("gpusched.sqlite*"):
        file.unlink()
    own.start()
    new = own.sh('ls "$GPUSCHED_CHECKPOINT_DIR"; echo "resume=$GPUSCHED_RESUME"', gpus=0)
    own.ended(new)
    assert own.output(new) == "resume=\n"
    assert int(new) > int(old)
    own.restart()
    assert int(own.sh("true", gpus=0)) > int(new)


def test_without_a_free_descriptor_no_attempt_is_lost_and_everything_goes_on_after_it(own: Place) -> None:
    own.expected = "."  # it says what fails
    gate = own.work / "gate"
    ends = own.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 3", gpus=1)
    stays = own.sh("sleep 600", gpus=1)
    for key in (ends, stays):
        own.running(key)
    pid, soft_hard = own.pid, resource.prlimit(own.pid, resource.RLIMIT_NOFILE)
    supervisor = own.supervisor(ends)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, soft_hard[1]))  # what is open stays open, nothing opens
    gate.touch()
    until(lambda: not os.path.exists(f"/proc/{supervisor}"), "the end of the supervisor")
    until(lambda: "Too many open files" in own.read_log(), own.read_log)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, soft_hard)
    job = own.ended(ends)
    assert (job["state"], job["exit_code"], job["attempt"]) == ("FAILED", 3, 1), own.story(ends)
    job = own.job(stays)
    assert (job["state"], job["attempt"]) == ("RUNNING", 1), own.story(stays)


def test_descriptors_do_not_pile_up_with_attempts(own: Place) -> None:
    own.ended(own.sh("true", gpus=1))
    until(lambda: not list(own.state.glob("attempts/[0-9]*")), "the first to be forgotten")
    before = len(os.listdir(f"/proc/{own.pid}/fd"))
    keys = [own.sh("true", gpus=n % 2) for n in range(30)]
    for key in keys:
        own.ended(key)
    until(lambda: not list(own.state.glob("attempts/[0-9]*")), "all to be forgotten")
    assert len(os.listdir(f"/proc/{own.pid}/fd")) <= before + 3


def test_jobs_whose_level_and_partition_were_taken_from_the_configuration_can_be_shown_and_moved(
    tmp_path: Path, zygote: Any
) -> None:
    rules = '[qos.vip]\npriority = 5000\npreempts = ["low"]\n[partition.left]\ndevices = ["0"]\n'
    with a_daemon(tmp_path / "p", zygote, config=rules) as place:
        runs = place.sh("trap 'exit 85' TERM; sleep 600 & wait", gpus=1, qos="vip", partition="left")
        place.running(runs)
        waits = place.sh("true", gpus=1, qos="vip", partition="left")
        place.stop()
        place.config.write_text("sample_interval = 0.2\n")
        place.start()
        assert place.state_of(runs) == "RUNNING"
        assert "no longer exists" in place.client.why(waits)["text"]
        (result,) = place.client.update([waits], {"comment": "whose is it?"})
        assert result["ok"], result
        (result,) = place.client.update([waits], {"partition": "default", "qos": "normal"})
        assert result["ok"], result
        assert place.ended(waits)["state"] == "COMPLETED"
        place.client.preempt([runs])
        place.await_state(runs, "PENDING")
        assert place.cli("queue").code == 0


def test_with_fewer_devices_than_before_what_runs_goes_on_and_lets_go_of_what_is_not_there(
    tmp_path: Path, zygote: Any
) -> None:
    with a_daemon(tmp_path / "p", zygote, devices="sim:3x8G") as place:
        keys = [place.sh("sleep 600", gpus=1) for _ in range(3)]
        for key in keys:
            place.running(key)
        place.stop()
        place.devices = "sim:1x8G"
        place.start()
        assert {place.state_of(key) for key in keys} == {"RUNNING"}
        assert place.cli("queue").code == 0 and place.cli("gpus").code == 0
        place.client.cancel(keys)
        for key in keys:
            assert place.ended(key)["state"] == "CANCELLED"
        until(lambda: not list(place.state.glob("attempts/[0-9]*")), "every attempt to let go")
        assert place.ended(place.sh("true", gpus=1))["state"] == "COMPLETED"


def test_jobs_that_were_asked_to_leave_at_the_end_of_the_daemon_run_again_after_it(own: Place) -> None:
    key = own.sh("trap 'echo saved; exit 85' TERM; echo up; sleep 600 & wait", gpus=1)
    until(lambda: "up" in own.output(key), lambda: own.story(key))
    own.client.stop_daemon(ask_jobs=True)
    own.wait_gone()
    own.start()
    until(lambda: own.job(key)["attempt"] == 2 and own.state_of(key) == "RUNNING", lambda: own.story(key))
    assert "saved" in own.output(key)


def test_many_who_wait_for_many_jobs_are_all_told_and_then_leave_nothing(own: Place) -> None:
    gate = own.work / "gate"
    keys = [own.sh(f"while [ ! -e {gate} ]; do sleep 0.05; done", gpus=0) for _ in range(3)]
    array = own.sh("true", gpus=0, array="0-19", dependency=f"afterany:{keys[0]}")
    told: list[str] = []

    def wait(key: str) -> None:
        client = Client(str(own.state / "gpusched.sock"))
        try:
            answer = client.wait(key, 40.0)
            told.extend(job["state"] for job in answer.get("elements", [answer]))
        finally:
            client.close()

    threads = [threading.Thread(target=wait, args=(key,)) for key in [*keys * 10, array, f"{array}_7"]]
    for thread in threads:
        thread.start()
    gate.touch()
    for thread in threads:
        thread.join()
    assert len(told) == 30 + 20 + 1 and set(told) == {"COMPLETED"}, told
    assert own.client.wait(keys[0], 0.0)["state"] in FINAL


def waiting(place: Place, key: str, answers: list[Any]) -> threading.Thread:
    """A thread that asks with a connection of its own how the job ends, and notes the state or the error."""

    def wait() -> None:
        client = Client(str(place.state / "gpusched.sock"))
        try:
            answers.append(client.wait(key, 50.0)["state"])
        except Exception as error:
            answers.append(error)
        finally:
            client.close()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_who_waits_is_told_how_things_stand_when_the_daemon_ends(own: Place) -> None:
    key = own.sh("sleep 600", gpus=0)
    own.running(key)
    answers: list[Any] = []
    before = sockets(own)
    threads = [waiting(own, key, answers) for _ in range(3)]
    until(lambda: sockets(own) >= before + 3, "three who wait")
    own.stop()
    for thread in threads:
        thread.join()
    assert answers == ["RUNNING"] * 3


def test_who_has_knocked_before_the_daemon_ends_is_let_in_and_answered(own: Place) -> None:
    key = own.sh("sleep 600", gpus=0)
    own.running(key)
    answers: list[Any] = []
    hesitant = Client(str(own.state / "gpusched.sock"))  # connected, and quiet so far
    os.kill(own.pid, signal.SIGSTOP)  # nothing is accepted now, so the kernel keeps them all
    try:
        hesitant.open()
        threads = [waiting(own, key, answers) for _ in range(3)]
        until(lambda: queued(own) >= 4, "four in the queue")
        os.kill(own.pid, signal.SIGTERM)
    finally:
        os.kill(own.pid, signal.SIGCONT)
    with hesitant:
        until(lambda: queued(own) == 0, "the queue to be let in")
        assert hesitant.job(key)["state"] == "RUNNING"
    for thread in threads:
        thread.join()
    assert answers == ["RUNNING"] * 3
    own.wait_gone()
    with pytest.raises(Unavailable, match="nobody listens there any more"):
        own.client.status()


def queued(place: Place) -> int:
    """How many have connected and were not accepted: the daemon's ends have no inode yet."""
    path = str(place.state / "gpusched.sock")
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(row[-1] == path and row[6] == "0" for row in rows)
