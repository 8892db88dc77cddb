"""The daemon's shell when the world around it fails: no attempt is lost by mistake, none hangs, nothing grows."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import apscheduler.schedulers.base
import apscheduler.triggers.interval
import pytest

from gpusched import rundir
from gpusched.daemon import perform, watch
from gpusched.daemon import timers as timers_module
from gpusched.daemon.app import Daemon
from gpusched.daemon.board import Board, Progress
from gpusched.daemon.config import Config
from gpusched.daemon.orders import KEEP_ENVIRONMENTS, Orders
from gpusched.daemon.perform import Performer
from gpusched.daemon.places import Places
from gpusched.daemon.reconcile import observe_attempts
from gpusched.daemon.timers import Timers, next_run
from gpusched.daemon.watch import Watcher
from gpusched.launch.local import LocalLauncher
from gpusched.model.actions import Ask, Asked, Forget, Launch
from gpusched.model.clock import Instant
from gpusched.model.device import ProbeSample
from gpusched.model.errors import Degraded, GpuschedError
from gpusched.model.events import AttemptExited, AttemptStarted, Event, Woke
from gpusched.model.job import Attempt, AttemptKey, Job, JobSpec, Owner, Request
from gpusched.model.state import JobState, Outcome, OutcomeKind
from gpusched.ports import LaunchError, LaunchOrder, Observation
from gpusched.store.memory import MemoryStore

KEY = AttemptKey(7, 1)
SPEC = JobSpec(("true",), "/", request=Request(gpus=0))
JOB = Job(7, Owner(1000, 1000, "me"), SPEC, JobState.STARTING, 1.0, attempt=1)
ATTEMPT = Attempt(7, 1, (), "boot", created=0.0, created_at=0.0)
DONE = Outcome(OutcomeKind.EXITED, code=0)


async def soon(condition: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := condition():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


class NoProbe:
    async def read(self, _uuids: object) -> ProbeSample:
        return ProbeSample()


class FakeLauncher:
    """A launcher that does what the test says."""

    def __init__(self) -> None:
        self.start_fails: list[Exception] = []
        self.revoke_fails: list[Exception] = []
        self.observe_fails: list[Exception] = []
        self.seen = Observation(claimed=True, pid=11, supervisor_pid=10, mark="m", outcome=DONE)
        self.revoked: list[AttemptKey] = []
        self.started: list[AttemptKey] = []
        self.asked: list[AttemptKey] = []
        self.forgotten: list[AttemptKey] = []

    async def start(self, order: LaunchOrder) -> None:
        if self.start_fails:
            raise self.start_fails.pop()
        self.started.append(order.attempt)

    def revoke(self, key: AttemptKey) -> bool:
        if self.revoke_fails:
            raise self.revoke_fails.pop()
        self.revoked.append(key)
        return not self.seen.claimed

    def observe(self, key: AttemptKey) -> Observation:
        if self.observe_fails:
            raise self.observe_fails.pop()
        return self.seen

    async def ended(self, key: AttemptKey) -> None:
        return

    def attempts(self) -> tuple[AttemptKey, ...]:
        return (KEY,)

    def kill_remains(self, key: AttemptKey) -> int:
        return 0

    def ask(self, key: AttemptKey, what: Asked, **_: object) -> None:
        if key.job_id == 13:
            raise ValueError("a bug")
        self.asked.append(key)

    def forget(self, key: AttemptKey) -> None:
        self.forgotten.append(key)


class Shell:
    """A Performer and a Watcher on a fake launcher, and the events they post."""

    def __init__(self, root: Path) -> None:
        self.launcher = FakeLauncher()
        self.posted: list[Event] = []
        self.environment: Callable[[], Any] = dict
        state = SimpleNamespace(attempt=lambda key: ATTEMPT if key == KEY else None)
        self.loop: Any = SimpleNamespace(
            engine=SimpleNamespace(state=state, view=SimpleNamespace(slots={})), post=self.posted.append,
            read=self._read, clock=SimpleNamespace(now=lambda: Instant(1.0, 1.0)), store=None,
        )  # fmt: skip
        launcher: Any = self.launcher
        probe: Any = NoProbe()
        self.watcher = Watcher(
            launcher, probe, lambda *_: (), Board(), self.posted.append, self.posted.append
        )
        sampler: Any = SimpleNamespace(look_again_soon=lambda: None)
        self.orders = Orders(self.loop, Places(root))
        self.performer = Performer(self.loop, launcher, self.watcher, sampler, self.orders)

    async def _read(self, _query: object) -> Any:
        return self.environment()

    def exits(self) -> list[AttemptExited]:
        return [event for event in self.posted if isinstance(event, AttemptExited)]


@asynccontextmanager
async def shell(root: Path) -> AsyncIterator[Shell]:
    made = Shell(root)
    try:
        yield made
    finally:
        await made.performer.close()
        await made.watcher.close()


async def test_a_start_that_cannot_even_be_taken_back_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perform, "AGAIN", 0.01)
    async with shell(tmp_path) as s:
        s.launcher.seen = Observation()
        s.launcher.start_fails = [LaunchError("the disk is full")]
        s.launcher.revoke_fails = [OSError(errno.ENOSPC, "no room"), OSError(errno.ENOSPC, "no room")]
        s.performer([Launch(KEY, JOB, ())])
        await soon(s.exits)
        assert [(e.outcome.kind, e.outcome.text) for e in s.exits()] == [
            (OutcomeKind.NEVER_STARTED, "the disk is full")
        ]


async def test_the_daemon_can_end_while_a_start_cannot_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perform, "LAST_STARTS", 0.05)
    async with shell(tmp_path) as s:
        s.launcher.start_fails = [LaunchError("the disk is full")]
        s.launcher.revoke_fails = [OSError(errno.ENOSPC, "no room")] * 10_000
        s.performer([Launch(KEY, JOB, ())])
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await s.performer.close()


@pytest.mark.parametrize("trouble", [Degraded("the database cannot be read"), ValueError("a bug"), KeyError("env")])
async def test_what_was_never_handed_to_a_supervisor_is_not_called_lost(tmp_path: Path, trouble: Exception) -> None:
    def fail() -> Any:
        raise trouble

    async with shell(tmp_path) as s:
        s.launcher.seen, s.environment = Observation(), fail
        s.performer([Launch(KEY, JOB, ())])
        await soon(s.exits)
        (exited,) = s.exits()
        assert exited.outcome.kind is OutcomeKind.NEVER_STARTED and exited.outcome.text
        assert s.launcher.revoked == [KEY]


async def test_a_supervisor_that_ends_before_it_claims_means_never_started_and_is_revoked(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        s.launcher.seen = Observation()
        s.watcher.follow(ATTEMPT)
        await soon(s.exits)
        assert s.exits()[0].outcome.kind is OutcomeKind.NEVER_STARTED
        assert s.launcher.revoked == [KEY]


async def test_an_attempt_that_cannot_be_looked_at_for_a_moment_is_still_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AGAIN", 0.01)
    async with shell(tmp_path) as s:
        s.launcher.observe_fails = [OSError(errno.EMFILE, "too many open files")] * 3
        s.watcher.follow(ATTEMPT)
        await soon(s.exits)
        assert s.exits()[0].outcome == DONE
        assert AttemptStarted(KEY, 11) in s.posted


async def test_one_action_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        bad, good = AttemptKey(13, 1), AttemptKey(14, 1)
        s.performer([Ask(bad, Asked.STOP, "", None, 15), Ask(good, Asked.STOP, "", None, 15)])
        assert s.launcher.asked == [good]


async def test_environments_of_submits_do_not_pile_up(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        for number in range(10 * KEEP_ENVIRONMENTS):
            s.orders.remember_environment(f"digest-{number}", {"SEED": str(number)})
        assert len(s.orders._environments) <= KEEP_ENVIRONMENTS
        s.environment = lambda: pytest.fail("the latest one is not there any more")
        assert await s.orders._environment(f"digest-{number}") == {"SEED": str(number)}


async def test_nothing_is_remembered_of_an_attempt_that_is_over(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        s.watcher.look(KEY)
        s.watcher.forget(KEY)
        assert not s.watcher._told and not s.watcher._supervisors and not s.watcher._marks


async def test_a_start_that_was_taken_back_while_it_was_prepared_is_not_carried_out(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        gone = AttemptKey(8, 1)
        s.performer([Launch(gone, replace(JOB, id=8), ())])
        await soon(lambda: not s.performer._starting)
        assert s.launcher.started == []
        s.performer([Launch(KEY, JOB, ())])
        await soon(lambda: s.launcher.started == [KEY])


# ---- the start of the daemon ------------------------------------------------------------------------------------


def an_engine(boot: str = "boot") -> Any:
    view = SimpleNamespace(live={7: ATTEMPT}, leaving={})
    return SimpleNamespace(view=view, state=SimpleNamespace(boot_id=boot))


async def test_after_a_reboot_what_has_no_end_is_lost(tmp_path: Path) -> None:
    async with shell(tmp_path) as s:
        s.launcher.seen = Observation(claimed=True, boot_id="boot", pid=11, alive=True)
        events = await observe_attempts(an_engine(boot="the next boot"), s.watcher)
        (exited,) = [e for e in events if isinstance(e, AttemptExited)]
        assert exited.outcome.kind is OutcomeKind.LOST and not s.watcher._following


# ---- descriptors ------------------------------------------------------------------------------------------------


@contextmanager
def no_more_descriptors() -> Any:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_an_attempt_cannot_be_looked_at_and_is_not_taken_for_gone(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, tmp_path / "bell")
    launcher.control(KEY).mkdir()
    rundir.claim(str(launcher.control(KEY) / rundir.CLAIM), {"supervisor": os.getpid(), "boot_id": "b", "mark": "m"})
    (launcher.control(KEY) / rundir.LOCK).touch()
    with no_more_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            launcher.observe(KEY)
        with pytest.raises(OSError, match="Too many open files"):
            await launcher.ended(KEY)
    assert launcher.observe(KEY).claimed


# ---- time -------------------------------------------------------------------------------------------------------


async def test_devices_are_sampled_on_after_the_wall_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    back = timedelta(0)

    class Wall(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - back

    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Wall)
    monkeypatch.setattr(apscheduler.triggers.interval, "datetime", Wall)
    timers, runs = Timers(lambda _: None, lambda: 0.0), []

    async def sample() -> None:
        runs.append(1)

    timers.start()
    try:
        timers.every(0.05, sample, "sample")
        await soon(lambda: len(runs) > 2)
        back = timedelta(hours=1)
        seen = len(runs)
        await soon(lambda: len(runs) > seen + 3)
    finally:
        timers.stop()


async def test_a_sweep_that_fails_once_is_run_again() -> None:
    timers, runs = Timers(lambda _: None, lambda: 0.0), []

    async def sweep() -> None:
        runs.append(1)
        raise OSError("once")

    timers.start()
    try:
        timers.every(0.02, sweep, "sweep")
        await soon(lambda: len(runs) > 2)
    finally:
        timers.stop()


def test_cron_keeps_its_local_hour_when_the_clocks_change(monkeypatch: pytest.MonkeyPatch) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    monkeypatch.setattr(timers_module, "get_localzone", lambda: berlin)

    def after(*when: int, cron: str = "0 9 * * *") -> datetime:
        return datetime.fromtimestamp(next_run(cron, datetime(*when, tzinfo=berlin).timestamp()), berlin)

    assert after(2026, 3, 28, 12) == datetime(2026, 3, 29, 9, tzinfo=berlin)  # summer time begins that night
    assert after(2026, 10, 24, 12) == datetime(2026, 10, 25, 9, tzinfo=berlin)
    assert after(2026, 3, 1, 12, cron="0 9 1 * *") == datetime(2026, 4, 1, 9, tzinfo=berlin)
    at = datetime(2026, 10, 25, tzinfo=berlin).timestamp()
    for _ in range(40):  # in the hour that comes twice it goes on, and never into the past
        before, at = at, next_run("*/15 * * * *", at)
        assert at - before == 900


async def test_a_daemon_whose_loop_fails_ends_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path)
    daemon = Daemon(Config(devices="sim:1x1G"), places, MemoryStore(), None)
    ended = asyncio.create_task(daemon.run())
    await soon(places.socket.exists)

    async def fail(_batch: object) -> None:
        raise MemoryError("a bug")

    monkeypatch.setattr(daemon.loop, "turn", fail)
    daemon.loop.post(Woke())
    async with asyncio.timeout(60):
        with pytest.raises(GpuschedError, match="a bug"):
            await ended


# ---- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1.7e308, 1e300])
def test_progress_without_a_sensible_end_has_no_eta(total: float) -> None:
    progress = Progress(KEY, {"step": 0, "total": total, "time": 0.0}, {"step": 1e-300, "total": total, "time": 1e9})
    assert progress.eta() is None


async def test_forgetting_goes_on_when_the_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "FORGET_AFTER", 0.0)
    async with shell(tmp_path) as s:
        s.performer([Forget(KEY)])
        await soon(lambda: s.launcher.forgotten == [KEY])
