"""What every launcher must do (ports.Launcher). A new launcher joins by one more parameter of the fixture."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attempts import FIRST, Place, a_place, alive, until

from gpusched import rundir
from gpusched.launch.local import LocalLauncher
from gpusched.model.actions import Asked
from gpusched.model.job import AttemptKey
from gpusched.model.state import OutcomeKind
from gpusched.ports import Launcher, LaunchError, Observation


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


def a_stop(launcher: Launcher, key: AttemptKey = FIRST, number: int = signal.SIGTERM) -> None:
    launcher.ask(key, Asked.STOP, cause="cancelled by alice", deadline=None, signal=number)


@pytest.mark.parametrize("code", [0, 1, 7, 85, 126, 127, 128, 143, 255])
async def test_the_exit_code_is_exact(place: Place, code: int) -> None:
    await place.shell(f"exit {code}")
    outcome = await place.outcome()
    assert (outcome.kind, outcome.code, outcome.signal) == (OutcomeKind.EXITED, code, None)
    assert not outcome.killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN])
async def test_death_by_a_signal_is_told_from_an_exit_code(place: Place, number: int) -> None:
    await place.shell(f"ulimit -c 0; kill -{int(number)} $$; sleep 60")
    outcome = await place.outcome()
    assert (outcome.kind, outcome.signal, outcome.code) == (OutcomeKind.SIGNALLED, number, None)
    assert not outcome.killed


async def test_what_an_attempt_used_is_measured(place: Place) -> None:
    await place.start("python3", "-c", "x = bytearray(100 << 20); sum(range(2_000_000))")
    outcome = await place.outcome()
    assert outcome.max_rss_mib is not None and outcome.max_rss_mib >= 100
    assert outcome.cpu_s is not None and outcome.cpu_s > 0


async def test_an_attempt_is_observed_through_its_life(place: Place) -> None:
    assert place.launcher.observe(FIRST) == Observation()
    await place.shell("sleep 60")
    pid = await place.pid()
    running = place.launcher.observe(FIRST)
    assert running.claimed and running.alive and not running.revoked
    assert running.boot_id == rundir.boot_id()
    assert running.mark is not None and running.outcome is None
    assert alive(pid) and running.supervisor_pid is not None and alive(running.supervisor_pid)
    os.kill(pid, signal.SIGKILL)
    assert (await place.outcome()).signal == signal.SIGKILL
    after = place.launcher.observe(FIRST)
    assert after.claimed and not after.alive and after.pid == pid
    assert not alive(pid) and not alive(running.supervisor_pid)


async def test_a_second_start_is_a_no_op_whenever_it_comes(place: Place) -> None:
    script = "echo ran >> $HERE/runs; read < $HERE/go"
    os.mkfifo(place.file("go"))
    await asyncio.gather(*(place.shell(script) for _ in range(5)))
    await place.pid()
    await place.shell(script)
    place.file("go").write_text("now\n")
    assert (await place.outcome()).code == 0
    await place.shell(script)
    await place.launcher.ended(FIRST)
    assert place.file("runs").read_text() == "ran\n"


async def test_a_revoked_attempt_never_starts(place: Place) -> None:
    assert place.launcher.revoke(FIRST)
    assert place.launcher.revoke(FIRST), "revoking again says the same"
    seen = place.launcher.observe(FIRST)
    assert seen.revoked and not seen.claimed and not seen.alive
    with pytest.raises(LaunchError, match="taken back"):
        await place.shell("touch $HERE/ran")
    await place.launcher.ended(FIRST)
    assert not place.file("ran").exists()


async def test_a_started_attempt_cannot_be_revoked(place: Place) -> None:
    await place.shell("exit 3")
    await until(lambda: place.launcher.observe(FIRST).claimed)
    assert not place.launcher.revoke(FIRST)
    assert (await place.outcome()).code == 3
    assert not place.launcher.revoke(FIRST)


async def test_of_revoke_and_start_exactly_one_wins(place: Place) -> None:
    """Whoever it is: from the start a little later to the revoke a little later. The two tests above are the ends."""
    await place.shell("true", key=AttemptKey(1000, 1))  # warm
    for number in range(1, 61):
        key = AttemptKey(number, 1)
        lead = (number % 20 - 4) / 2000  # seconds by which the start comes first; negative: the revoke does

        async def start(key: AttemptKey = key, delay: float = -lead) -> object:
            await asyncio.sleep(max(0.0, delay))
            return await place.shell(f"echo ran >> $HERE/ran-{key.job_id}", key=key)

        async def revoke(key: AttemptKey = key, delay: float = lead) -> bool:
            await asyncio.sleep(max(0.0, delay))
            return place.launcher.revoke(key)

        started, revoked = await asyncio.gather(start(), revoke(), return_exceptions=True)
        async with asyncio.timeout(30):
            await place.launcher.ended(key)
        assert isinstance(revoked, bool)
        ran = place.file(f"ran-{number}").exists()
        assert ran is not revoked
        assert (place.launcher.observe(key).outcome is None) is revoked
        assert not isinstance(started, BaseException) or (isinstance(started, LaunchError) and revoked)


async def test_attempts_are_listed_until_they_are_forgotten(place: Place) -> None:
    keys = [AttemptKey(2, 10), AttemptKey(2, 9), AttemptKey(10, 1)]
    for key in keys:
        await place.shell("true", key=key)
        await place.outcome(key)
    (place.control(FIRST).parent / "notes").mkdir()
    assert place.launcher.attempts() == (AttemptKey(2, 9), AttemptKey(2, 10), AttemptKey(10, 1))
    place.launcher.forget(AttemptKey(2, 9))
    place.launcher.forget(AttemptKey(2, 9))
    assert place.launcher.attempts() == (AttemptKey(2, 10), AttemptKey(10, 1))
    assert place.launcher.observe(AttemptKey(2, 9)) == Observation()


async def test_what_a_crash_left_of_a_forgotten_attempt_goes_at_the_next_start(place: Place) -> None:
    await place.shell("true")
    await place.outcome()
    place.control(FIRST).rename(place.root / "control" / f".{FIRST}.forgotten")
    await place.launcher.open()
    assert os.listdir(place.root / "control") == []


async def test_there_is_nothing_to_wait_for_without_an_attempt(place: Place) -> None:
    async with asyncio.timeout(10):
        await place.launcher.ended(AttemptKey(77, 1))
    assert place.launcher.attempts() == ()


async def test_everybody_who_waits_for_the_end_is_told(place: Place) -> None:
    await place.shell("sleep 60")
    pid = await place.pid()
    waiting = [asyncio.ensure_future(place.launcher.ended(FIRST)) for _ in range(3)]
    cancelled = asyncio.ensure_future(place.launcher.ended(FIRST))
    await asyncio.sleep(0)
    cancelled.cancel()
    os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    assert place.launcher.observe(FIRST).outcome is not None


async def test_stop_sends_the_signal_that_was_asked_for(place: Place) -> None:
    await place.shell("trap 'exit 85' USR2; echo ready; while :; do sleep 0.05; done")
    await until(lambda: place.output() == "ready\n")
    a_stop(place.launcher, number=signal.SIGUSR2)
    outcome = await place.outcome()
    assert (outcome.code, outcome.killed) == (85, False)


async def test_kill_ends_the_tree_and_says_so(place: Place) -> None:
    await place.shell("trap '' TERM; echo ready; while :; do sleep 60; done")
    await until(lambda: place.output() == "ready\n")
    place.launcher.kill(FIRST)
    outcome = await place.outcome()
    assert (outcome.kind, outcome.signal, outcome.killed) == (OutcomeKind.SIGNALLED, signal.SIGKILL, True)
    place.launcher.kill(FIRST)  # once more, and too late: harmless
    assert place.launcher.kill_remains(FIRST) == 0


async def test_attempts_live_on_when_the_launcher_lets_go(place: Place) -> None:
    await place.shell("echo ready; while [ ! -e $HERE/go ]; do sleep 0.02; done; exit 42")
    await until(lambda: place.output() == "ready\n")
    await place.launcher.close()
    place.launcher = LocalLauncher(place.root / "control", place.root / "bell")  # of the next daemon
    seen = place.launcher.observe(FIRST)
    assert seen.alive and seen.pid is not None and seen.outcome is None
    place.file("go").touch()
    assert (await place.outcome()).code == 42
