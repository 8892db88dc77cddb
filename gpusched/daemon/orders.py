"""From the engine's `Launch` to the order that a supervisor gets: environment, directories, output, devices."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import stat
from collections import OrderedDict

from gpusched.daemon.loop import Loop
from gpusched.daemon.places import Places, output_path
from gpusched.launch.environ import job_environment
from gpusched.model.actions import Launch
from gpusched.model.events import ScriptChanged
from gpusched.model.job import AttemptKey, Environment, Job
from gpusched.ports import LaunchOrder

log = logging.getLogger(__name__)
KEEP_ENVIRONMENTS = 32
LARGEST_SCRIPT = 8 << 20  # bytes; a larger one is no script, and is not compared


class Orders:
    def __init__(self, loop: Loop, places: Places) -> None:
        self._loop = loop
        self._places = places
        self._environments: OrderedDict[str, Environment] = OrderedDict()

    async def prepare(self, action: Launch) -> LaunchOrder:
        """Make the attempt's directories and gather all that its supervisor needs. Raises OSError, GpuschedError."""
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
            grace=action.grace,
        )
        output = output_path(job, job.spec.output)
        assert output is not None
        await self._compare_script(action)
        return LaunchOrder(
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

    async def _compare_script(self, action: Launch) -> None:
        """Have the job's story say so if its script is not the one that was submitted."""
        source = action.job.spec.source
        if source.script is None or source.script_sha256 is None:
            return
        path = os.path.join(action.job.spec.cwd, source.script)
        found = await asyncio.to_thread(_sha256, path)
        if found != source.script_sha256:
            self._loop.post_soon(ScriptChanged(action.attempt, found))


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
            return any(not entry.name.startswith(".") for entry in entries)  # a lock file is no checkpoint
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
