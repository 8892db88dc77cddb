"""Performs the engine's actions. Each is safe to repeat; none of them blocks the loop for long."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import assert_never

from gpusched.daemon.loop import Loop
from gpusched.daemon.places import Places, output_path
from gpusched.daemon.sampling import Sampler
from gpusched.daemon.watch import Watcher
from gpusched.launch.environ import job_environment
from gpusched.model.actions import Action, Ask, Forget, Kill, Launch, LookAgain
from gpusched.model.errors import GpuschedError
from gpusched.model.events import AttemptExited, ScriptChanged
from gpusched.model.job import AttemptKey, Environment, Job
from gpusched.model.state import Outcome, OutcomeKind
from gpusched.ports import Launcher, LaunchError, LaunchOrder

log = logging.getLogger(__name__)
KEEP_ENVIRONMENTS = 32
LARGEST_SCRIPT = 8 << 20  # bytes; a larger one is no script, and is not compared
FORGET_AFTER = 0.25  # seconds
AGAIN = 1.0  # seconds after which what failed (no room on the disk, no free descriptor) is tried again
LAST_STARTS = 30.0  # seconds that starts which are under way have when the daemon ends


class Performer:
    def __init__(self, loop: Loop, launcher: Launcher, watcher: Watcher, sampler: Sampler, places: Places) -> None:
        self._loop = loop
        self._launcher = launcher
        self._watcher = watcher
        self._sampler = sampler
        self._places = places
        self._starting: dict[AttemptKey, asyncio.Task[None]] = {}
        self._environments: OrderedDict[str, Environment] = OrderedDict()
        self._closing = False

    def __call__(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._starting[action.attempt] = asyncio.get_running_loop().create_task(self._launch(action))
                case Ask():
                    self._after_start(action.attempt, lambda ask=action: self._ask(ask))  # type: ignore[misc]
                case Kill(key):
                    self._after_start(key, lambda key=key: self._kill(key))  # type: ignore[misc]
                case LookAgain():
                    self._sampler.look_again_soon()
                case Forget(key):  # in no hurry: whoever waits for the devices is launched first
                    asyncio.get_running_loop().call_later(FORGET_AFTER, self._forget, key)
                case _:
                    assert_never(action)

    def _ask(self, ask: Ask) -> None:
        try:
            self._launcher.ask(ask.attempt, ask.what, cause=ask.cause, deadline=ask.deadline, signal=ask.signal)
        except OSError as error:  # what was not asked to save would lose its work at the end of its grace period
            log.error("attempt %s could not be asked: %s", ask.attempt, error)
            asyncio.get_running_loop().call_later(AGAIN, self._once_more, ask.attempt, lambda: self._ask(ask))

    def _kill(self, key: AttemptKey) -> None:
        try:
            self._launcher.kill(key)
        except OSError as error:
            log.error("attempt %s could not be killed: %s", key, error)
            asyncio.get_running_loop().call_later(AGAIN, self._once_more, key, lambda: self._kill(key))

    def _once_more(self, key: AttemptKey, act: Callable[[], None]) -> None:
        if not self._closing and self._lives(key):
            self._after_start(key, act)

    def _lives(self, key: AttemptKey) -> bool:
        attempt = self._loop.engine.state.attempt(key)
        return attempt is not None and attempt.live

    def _forget(self, key: AttemptKey) -> None:
        self._after_start(key, lambda: self._watcher.forget(key))

    def _after_start(self, key: AttemptKey, act: Callable[[], None]) -> None:
        """Act now, or as soon as the start of this attempt that is under way has been handed over."""
        starting = self._starting.get(key)
        if starting is None:
            self._guarded(key, act)
        else:
            starting.add_done_callback(lambda _: self._guarded(key, act))

    def _guarded(self, key: AttemptKey, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # whatever it is, the actions that follow are not to suffer for it
            log.exception("acting on attempt %s failed", key)

    async def _launch(self, action: Launch) -> None:
        key = action.attempt
        try:
            await self._start(action)
        except Exception as error:
            expected = isinstance(error, (LaunchError, OSError, GpuschedError))
            log.error("attempt %s could not be started: %s", key, error, exc_info=None if expected else error)
            if await self._taken_back(key):
                outcome = Outcome(OutcomeKind.NEVER_STARTED, text=str(error) or type(error).__name__)
                self._loop.post(AttemptExited(key, outcome))
                return
        finally:
            self._starting.pop(key, None)
        attempt = self._loop.engine.state.attempt(key)
        if attempt is not None and attempt.live:
            self._watcher.follow(attempt)

    async def _compare_script(self, action: Launch) -> None:
        """Have the job's story say so if its script is not the one that was submitted."""
        source = action.job.spec.source
        if source.script is None or source.script_sha256 is None:
            return
        path = os.path.join(action.job.spec.cwd, source.script)
        found = await asyncio.to_thread(_sha256, path)
        if found != source.script_sha256:
            self._loop.post_soon(ScriptChanged(action.attempt, found))

    async def _taken_back(self, key: AttemptKey) -> bool:
        """Whether the start that failed can never happen any more. A full disk can forbid even that: then later."""
        while True:
            try:
                return self._launcher.revoke(key)
            except OSError as error:
                log.error("the start of attempt %s cannot be taken back yet: %s", key, error)
            await asyncio.sleep(AGAIN)

    async def _start(self, action: Launch) -> None:
        job, key = action.job, action.attempt
        environment = await self._environment(job.spec.env_digest)
        job_dir, checkpoint_dir = self._places.job_dir(key), self._places.checkpoint_dir(job)
        job_dir.mkdir(parents=True, exist_ok=True)
        _make_checkpoint_dir(str(checkpoint_dir))
        view = self._loop.engine.view
        devices = [
            (view.slots[share.uuid].device.index if share.uuid in view.slots else -1, share.uuid)
            for share in action.devices
        ]
        env = job_environment(
            job,
            key.number,
            devices,
            {**environment, "GPUSCHED_STATE_DIR": str(self._places.state)},  # a submit in a job goes to the same daemon
            job_dir=str(job_dir),
            checkpoint_dir=str(checkpoint_dir),
            master_port=_free_port() if len(devices) > 1 else None,
            resume=_has_checkpoint(str(checkpoint_dir)),
            started_at=self._loop.clock.now().wall,
            submit_dir=job.spec.cwd,
        )
        output = output_path(job, job.spec.output)
        assert output is not None
        order = LaunchOrder(
            key,
            job.spec.command,
            env,
            job.spec.cwd,
            output,
            output_path(job, job.spec.error),
            str(job_dir),
            umask=job.spec.umask,
            banner=_banner(job, key),
        )
        await self._compare_script(action)
        if self._lives(key):  # the engine was rebuilt meanwhile, perhaps, and has taken the start back
            await self._launcher.start(order)

    async def _environment(self, digest: str) -> Environment:
        known = self._environments.get(digest)
        if known is None:
            known = await self._loop.read(lambda: self._loop.store.environment(digest))
            self.remember_environment(digest, known)
        return known

    def remember_environment(self, digest: str, environment: Environment) -> None:
        """Spare the launch that follows a submit the look into the store."""
        self._environments[digest] = environment
        self._environments.move_to_end(digest)
        while len(self._environments) > KEEP_ENVIRONMENTS:
            self._environments.popitem(last=False)

    async def close(self) -> None:
        """Let starts that are under way be handed over; the next daemon looks at what hangs."""
        self._closing = True
        starting = list(self._starting.values())
        if starting:
            _, hanging = await asyncio.wait(starting, timeout=LAST_STARTS)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)


def _banner(job: Job, key: AttemptKey) -> str:
    """The divider between the attempts of one job in its output file. The first attempt's output stays as it is."""
    if key.number == 1:
        return ""
    return f"---- gpusched: job {job.key}, attempt {key.number} ----"


def _make_checkpoint_dir(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        log.warning("checkpoint directory %s: %s", path, error.strerror)  # the job will say so itself


def _has_checkpoint(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _sha256(path: str) -> str | None:
    """Of a regular file of sensible size; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_SCRIPT:
            return None
        return hashlib.sha256(file.read(LARGEST_SCRIPT)).hexdigest()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
