"""Whoever dies, the truth survives: the daemon, the spawner, the supervisor, and a pid that now is somebody else's."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from attempts import FIRST, PATH, Place, a_place, alive, until

from gpusched import rundir
from gpusched.launch import spawner as spawner_module
from gpusched.launch.local import LocalLauncher
from gpusched.model.actions import Asked
from gpusched.model.job import AttemptKey
from gpusched.model.state import OutcomeKind
from gpusched.ports import LaunchError
from gpusched.supervisor import tree

# A daemon's worth of launcher that starts one job and then waits to be killed.
DAEMON = """
import asyncio, sys
from pathlib import Path
from gpusched.launch.local import LocalLauncher
from gpusched.model.job import AttemptKey
from gpusched.ports import LaunchOrder

async def main():
    root = Path(sys.argv[1])
    launcher = LocalLauncher(root / "control", root / "bell")
    env = {"PATH": sys.argv[3], "HERE": str(root)}
    await launcher.start(LaunchOrder(
        AttemptKey(1, 1), ("/bin/bash", "-c", sys.argv[2]), env, str(root), str(root / "1-1.out"), None,
        str(root / "jobs" / "1-1"),
    ))
    print(launcher.spawner_pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
WAITING = "echo ready; while [ ! -e $HERE/go ]; do sleep 0.02; done; exit 42"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


@pytest.fixture
def daemons() -> Iterator[list[subprocess.Popen[str]]]:
    """Daemons that a test has started; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for daemon in started:
        daemon.kill()
        daemon.wait()


def a_daemon(place: Place, daemons: list[subprocess.Popen[str]]) -> tuple[subprocess.Popen[str], int]:
    """A separate process with a launcher of its own that has started the waiting job, and the pid of its spawner."""
    words = [sys.executable, "-c", DAEMON, str(place.root), WAITING, PATH]
    daemon = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    daemons.append(daemon)
    assert daemon.stdout is not None
    with daemon.stdout:
        return daemon, int(daemon.stdout.readline())


# ---- the daemon dies ------------------------------------------------------------------------------------------


async def test_a_job_outlives_its_daemon_and_is_adopted_with_its_true_code(
    place: Place, daemons: list[subprocess.Popen[str]]
) -> None:
    daemon, spawner = await asyncio.to_thread(a_daemon, place, daemons)
    await until(lambda: place.output() == "ready\n")
    daemon.kill()
    daemon.wait()
    await until(lambda: not alive(spawner), "the end of the orphaned spawner")
    seen = place.launcher.observe(FIRST)
    assert seen.alive and seen.pid is not None and alive(seen.pid)
    waiting = asyncio.ensure_future(place.launcher.ended(FIRST))
    await place.shell("touch $HERE/twice")  # the new daemon is not sure and starts it again
    place.file("go").touch()
    async with asyncio.timeout(30):
        await waiting
    outcome = place.launcher.observe(FIRST).outcome
    assert outcome is not None and (outcome.kind, outcome.code) == (OutcomeKind.EXITED, 42)
    assert not place.file("twice").exists()


async def test_a_job_that_ends_while_no_daemon_runs_leaves_its_true_code(
    place: Place, daemons: list[subprocess.Popen[str]]
) -> None:
    daemon, _ = await asyncio.to_thread(a_daemon, place, daemons)
    await until(lambda: place.output() == "ready\n")
    daemon.kill()
    daemon.wait()
    place.file("go").touch()
    await until(lambda: not place.launcher.observe(FIRST).alive)
    outcome = await place.outcome()
    assert outcome.code == 42


async def test_an_interrupt_at_the_daemons_terminal_does_not_reach_jobs(
    place: Place, daemons: list[subprocess.Popen[str]]
) -> None:
    daemon, spawner = await asyncio.to_thread(a_daemon, place, daemons)
    await until(lambda: place.output() == "ready\n")
    pid = await place.pid()
    supervisor = place.launcher.observe(FIRST).supervisor_pid
    assert supervisor is not None
    processes = (daemon.pid, spawner, supervisor, pid)
    assert len({os.getpgid(pid) for pid in processes}) == len({os.getsid(pid) for pid in processes}) == 4
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(supervisor, number)
    place.file("go").touch()
    assert (await place.outcome()).code == 42


# ---- the spawner dies -----------------------------------------------------------------------------------------


async def test_a_dead_spawner_is_replaced_and_takes_no_job_along(place: Place) -> None:
    await place.shell(WAITING)
    await until(lambda: place.output() == "ready\n")
    first = place.launcher.spawner_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    second = AttemptKey(2, 1)
    await place.shell("exit 5", key=second)
    assert (await place.outcome(second)).code == 5
    assert place.launcher.spawner_pid not in (None, first)
    place.file("go").touch()
    assert (await place.outcome()).code == 42


async def test_a_stuck_spawner_is_replaced_and_the_job_runs_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.launcher.open()
    assert place.launcher.spawner_pid is not None
    os.kill(place.launcher.spawner_pid, signal.SIGSTOP)
    monkeypatch.setattr(spawner_module, "ANSWER_WITHIN", 1.0)
    starting = asyncio.ensure_future(place.shell("echo ran >> $HERE/runs"))
    await asyncio.sleep(0)
    monkeypatch.setattr(spawner_module, "ANSWER_WITHIN", 30.0)
    await starting
    assert (await place.outcome()).code == 0
    assert place.file("runs").read_text() == "ran\n"


async def test_without_a_working_interpreter_nothing_starts_and_it_is_said(tmp_path: Path) -> None:
    for python in ("/nonexistent/python", "/bin/false"):
        root = tmp_path / Path(python).name
        async with a_place(root_of(root)) as place:
            place.launcher = LocalLauncher(root / "control", root / "bell", spawner_python=python)
            with pytest.raises(LaunchError, match="starts jobs"):
                await place.shell("touch $HERE/ran")
            assert place.launcher.observe(FIRST).revoked, "so that it can never start later"
            assert not place.file("ran").exists()


def root_of(path: Path) -> Path:
    path.mkdir()
    return path


async def test_a_run_directory_that_cannot_be_written_is_said(place: Place) -> None:
    place.file("control").write_text("a file where the directory should be")
    with pytest.raises(LaunchError, match="cannot be written"):
        await place.shell("true")
    with pytest.raises(LaunchError, match="cannot be created"):
        await place.launcher.open()


# ---- the supervisor dies --------------------------------------------------------------------------------------


async def test_a_killed_supervisor_leaves_no_ending_and_its_remains_are_found(place: Place) -> None:
    await place.shell("sleep 600 & setsid sleep 600 & (env -i sleep 600 &) & echo ready; wait")
    pid = await place.pid()
    await until(lambda: place.output() == "ready\n")
    supervisor = place.launcher.observe(FIRST).supervisor_pid
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    async with asyncio.timeout(30):
        await place.launcher.ended(FIRST)
    seen = place.launcher.observe(FIRST)
    assert seen.claimed and not seen.alive and seen.outcome is None
    assert alive(pid), "the job itself goes on, unsupervised"
    assert await asyncio.to_thread(place.launcher.kill_remains, FIRST) >= 3
    assert not alive(pid)
    assert await asyncio.to_thread(place.launcher.kill_remains, FIRST) == 0


async def test_remains_of_another_attempt_are_left_alone(place: Place) -> None:
    other = AttemptKey(1, 2)
    await place.shell("sleep 600")
    await place.shell("sleep 600", key=other)
    pids = await place.pid(), await place.pid(other)
    supervisor = place.launcher.observe(FIRST).supervisor_pid
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    await place.launcher.ended(FIRST)
    assert await asyncio.to_thread(place.launcher.kill_remains, FIRST) == 1
    assert [alive(pid) for pid in pids] == [False, True]
    assert place.launcher.observe(other).alive


async def test_a_job_whose_supervisor_dies_before_the_exec_never_begins(place: Place) -> None:
    # The banner does not fit into the pipe that is the output, so the child waits on its way from fork to exec.
    os.mkfifo(place.file("pipe"))
    reader = os.open(place.file("pipe"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        await place.shell("touch $HERE/ran", output=str(place.file("pipe")), banner="x" * (1 << 20))
        supervisor = await until(lambda: place.launcher.observe(FIRST).supervisor_pid)
        child = await until(lambda: below(supervisor), "the fork")
        await until(lambda: select.select([reader], [], [], 0)[0], "the banner")
        os.kill(supervisor, signal.SIGKILL)
        await place.launcher.ended(FIRST)
        assert alive(child)
        assert await asyncio.to_thread(place.launcher.kill_remains, FIRST) == 1
        assert not alive(child)
    finally:
        os.close(reader)
    assert not place.file("ran").exists()


def below(parent: int) -> int | None:
    return next((process.pid for process in tree.descendants(parent)), None)


async def test_asking_a_dead_supervisor_signals_nobody(place: Place) -> None:
    # The claim names a pid that now belongs to this very test: SIGUSR1 would end it.
    place.control().mkdir(parents=True)
    claim = {"supervisor": os.getpid(), "boot_id": "another-boot", "mark": "m"}
    (place.control() / rundir.CLAIM).write_text(json.dumps(claim))
    (place.control() / rundir.LOCK).touch()
    place.launcher.ask(FIRST, Asked.STOP, cause="x", deadline=None, signal=int(signal.SIGTERM))
    place.launcher.kill(FIRST)
    async with asyncio.timeout(30):
        await place.launcher.ended(FIRST)
    seen = place.launcher.observe(FIRST)
    assert seen.claimed and not seen.alive and seen.boot_id == "another-boot" and seen.outcome is None


async def test_a_torn_or_unknown_ending_is_never_a_success(place: Place) -> None:
    await place.shell("exit 0")
    await place.outcome()
    ending = place.control() / rundir.EXIT
    ending.write_text('{"kind": "exi')
    assert place.launcher.observe(FIRST).outcome is None
    ending.write_text('{"kind": "hibernated", "code": 0}')
    outcome = place.launcher.observe(FIRST).outcome
    assert outcome is not None and outcome.kind is OutcomeKind.LOST and "hibernated" in outcome.text


async def test_a_supervisor_that_finds_the_attempt_taken_does_nothing(place: Place) -> None:
    # Two spawners race with the same order, as after a crash between order and answer.
    others = [LocalLauncher(place.root / "control", place.root / "bell") for _ in range(3)]
    order = place.order("/bin/bash", "-c", "echo ran >> $HERE/runs; sleep 0.2; exit 8")
    await asyncio.gather(*(launcher.start(order) for launcher in [place.launcher, *others]))
    for launcher in [place.launcher, *others]:
        async with asyncio.timeout(30):
            await launcher.ended(FIRST)
        outcome = launcher.observe(FIRST).outcome
        assert outcome is not None and outcome.code == 8, "nobody may take the loser's end for the attempt's"
        await launcher.close()
    assert place.file("runs").read_text() == "ran\n"
    place.launcher = LocalLauncher(place.root / "control", place.root / "bell")


async def test_whoever_forked_the_second_supervisor_waits_for_the_first(place: Place) -> None:
    # 1. The lock is held, so that both supervisors wait before the claim; 2. each launcher waits for the one it has
    # forked; 3. the lock is free, one of them wins and the other leaves: that must not look like the end.
    place.control().mkdir(parents=True)
    other = LocalLauncher(place.root / "control", place.root / "bell")
    with (place.control() / rundir.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await place.shell(WAITING)
        mark = (rundir.read_json(str(place.control() / rundir.ORDER)) or {})["mark"]
        await other.start(place.order("/bin/bash", "-c", WAITING))
        waiting = [asyncio.ensure_future(launcher.ended(FIRST)) for launcher in (place.launcher, other)]
        await asyncio.sleep(0.05)
        assert not place.launcher.observe(FIRST).claimed
    await until(lambda: place.output() == "ready\n")
    spawners = (place.launcher.spawner_pid, other.spawner_pid)  # each has one more child, which stands by
    await until(lambda: sum(map(children, spawners)) == 3, "the loser's leaving")
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    seen = place.launcher.observe(FIRST)
    assert seen.alive and seen.mark == mark == (rundir.read_json(str(place.control() / rundir.ORDER)) or {})["mark"]
    place.file("go").touch()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    await other.close()
    assert place.launcher.observe(FIRST).outcome is not None


def children(parent: int | None) -> int:
    assert parent is not None
    states = [tree.stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return sum(1 for found in states if found is not None and found.parent == parent)
