"""Puts the daemon together: picks the adapters, takes the lock, starts, serves, and ends in order.

Nothing else in the daemon knows which store, probe or launcher it works with.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpusched import __version__, failpoints
from gpusched.api.peer import own_name
from gpusched.api.server import build
from gpusched.api.server import serve as listen
from gpusched.daemon import retention
from gpusched.daemon.board import Board
from gpusched.daemon.clock import SystemClock
from gpusched.daemon.config import Config, load_config
from gpusched.daemon.loop import Loop
from gpusched.daemon.orders import Orders
from gpusched.daemon.outlook import Outlook
from gpusched.daemon.perform import Performer
from gpusched.daemon.places import Places
from gpusched.daemon.reconcile import observe_attempts
from gpusched.daemon.routes import routes
from gpusched.daemon.sampling import Sampler
from gpusched.daemon.service import Service
from gpusched.daemon.timers import Timers
from gpusched.daemon.watch import Watcher
from gpusched.devices.attribution import Attributor
from gpusched.devices.simulated import SimulatedProbe
from gpusched.devices.simulated_spec import parse_simulated
from gpusched.devices.worker import NvmlProbe
from gpusched.engine.engine import Engine
from gpusched.launch.doorbell import Doorbell
from gpusched.launch.local import LocalLauncher
from gpusched.model.actions import Action
from gpusched.model.errors import GpuschedError, Refused
from gpusched.model.events import Event
from gpusched.model.job import AttemptKey
from gpusched.paths import make_state_dir
from gpusched.ports import DeviceProbe, LaunchError, Store, StoreError
from gpusched.rundir import boot_id
from gpusched.store.sqlite import SqliteStore

log = logging.getLogger("gpusched")
LOCK_PATIENCE = 2.0  # seconds that a killed daemon may take to let go of the lock


def serve(
    state_dir: Path,
    devices: str | None = None,
    config: Path | None = None,
    faults: Path | None = None,
    log_level: str | None = None,
) -> None:
    """Run the daemon until it is told to end. Raises GpuschedError if it cannot start.

    devices: `nvml` or a simulation such as `sim:4x24G`; None: what the configuration says.
    faults: a file with faults to inject into simulated devices (gpusched/devices/faults.py).
    """
    chosen = load_config(config)
    _log_to_stderr(log_level or chosen.log_level)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # started from inside a job: its devices are not the daemon's
    if armed := failpoints.arm():
        log.warning("a test has armed failpoints: this daemon will be killed at %s", ", ".join(armed))
    places = Places(Path(make_state_dir(str(state_dir))))
    lock = _take_lock(places)
    chosen = replace(chosen, devices=_remembered_devices(places, devices, chosen.devices))
    try:
        store = SqliteStore(places.database)
    except StoreError as error:
        raise Refused(error.message, error.hint) from None
    try:
        asyncio.run(Daemon(chosen, places, store, faults).run())
    except (StoreError, LaunchError) as error:
        raise Refused(str(error), getattr(error, "hint", "")) from None
    finally:
        os.close(lock)


def _remembered_devices(places: Places, asked: str | None, configured: str) -> str:
    """What `--devices` says; without it what it said last time here, so that a daemon which a command starts after a
    crash finds the devices its jobs run on; else the configuration. `--devices nvml` ends a simulation."""
    note = places.state / "devices"
    if asked is not None:
        note.write_text(f"{asked}\n")
        return asked
    try:
        remembered = note.read_text().strip()
    except FileNotFoundError:
        return configured
    log.info("devices as last time: %s (--devices nvml for real ones)", remembered)
    return remembered or configured


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )


def _take_lock(places: Places) -> int:
    """The lock decides who is the daemon of this state directory, not the socket file. Raises Refused."""
    fd = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    patience = time.monotonic() + LOCK_PATIENCE
    while not _locked(fd):
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        if _is_running(pid) or time.monotonic() > patience:
            os.close(fd)
            raise Refused(
                f"another daemon (process {pid}) already works on {places.state}",
                "use it as it is, or end it first: gpusched daemon stop",
            )
        time.sleep(0.02)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_running(pid: str) -> bool:
    """Not so for a daemon that was killed and lets go of the lock any moment."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


@dataclass(slots=True)
class Probe:
    kind: str
    adapter: DeviceProbe
    attributor: Attributor


def _probe(config: Config, places: Places, faults: Path | None) -> Probe:
    if config.devices.startswith("sim"):
        spec = parse_simulated(config.devices)
        return Probe("simulated", SimulatedProbe(spec, str(places.state), faults), Attributor(floor_mib=0))
    return Probe("nvml", NvmlProbe(config.nvml_library), Attributor())


class Daemon:
    """The assembled daemon."""

    def __init__(self, config: Config, places: Places, store: Store, faults: Path | None) -> None:
        self.config = config
        self.places = places
        self.clock = SystemClock()
        self.board = Board()
        self.probe = _probe(config, places, faults)
        self.launcher = LocalLauncher(places.control, places.doorbell)
        self.boot_id = boot_id()
        self.loop = Loop(store, self.clock, self._fresh_engine, self._perform, self._observe)
        self.watcher = Watcher(
            self.launcher, self.probe.adapter, self.probe.attributor.attribute, self.board, self.loop.post,
            self.loop.post_soon,
        )
        self.sampler = Sampler(
            self.probe.adapter, self.watcher, self.board, self.clock, self.loop.post,
            lambda: bool(self.loop.engine.view.leaving),
        )
        orders = Orders(self.loop, places)
        self.performer = Performer(self.loop, self.launcher, self.watcher, self.sampler, orders)
        self.timers = Timers(self.loop.post, lambda: self.clock.now().wall)
        self.doorbell = Doorbell(places.doorbell, self._rung)
        self._stopping = asyncio.Event()
        self.service = Service(
            self.loop, self.board, places, config, orders, self.probe.kind, self.clock.now().wall,
            own_name(), os.geteuid(), self._stopping.set, Outlook(self.loop),
        )

    # ---- what the loop calls --------------------------------------------------------------------------------

    def _fresh_engine(self) -> Engine:
        return Engine(self.config.rules, self.boot_id)

    def _perform(self, actions: Sequence[Action]) -> None:
        self.performer(actions)

    async def _observe(self, engine: Engine) -> list[Event]:
        """Devices first, so that the engine knows where its attempts are; then what became of each attempt."""
        self.sampler.forget_last()
        # A database that was put aside, or replaced by an older copy, must not give an id a second time: the new job
        # would go on from the checkpoints of the old one.
        engine.state.next_job_id = max(engine.state.next_job_id, self.places.highest_job_id() + 1)
        for attempt in (*engine.view.live.values(), *engine.view.leaving.values()):
            self.watcher.know(attempt.key)
        sampled = await self.sampler.read()
        for job in engine.state.jobs.values():
            if job.spec.cron is not None:
                self.timers.arm_cron(job)
        return [sampled, *await observe_attempts(engine, self.watcher)]

    def _rung(self, key: AttemptKey) -> None:
        try:
            self.watcher.rung(key)
        except Exception:
            log.exception("looking at attempt %s failed", key)

    # ---- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_loop_trouble)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        await self.launcher.open()
        self.doorbell.open()
        self.loop.on_step += [self.timers.on_step, self.service.on_step, self.service.outlook.on_step]
        self.timers.start()
        await self.loop.start()
        worker = asyncio.create_task(self.loop.run())
        self.timers.every(self.config.sample_interval, self.sampler.sample, "sample")
        self.timers.every(60.0, self._cut_outputs, "outputs")
        self.timers.every(3600.0, self._remove_old, "retention")
        app = build(routes(self.service), service_uid=os.geteuid())
        server = await listen(app, str(self.places.socket))
        self._say_hello()
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stop, worker}, return_when=asyncio.FIRST_COMPLETED)
        failed = worker.exception() if worker.done() else None
        if failed is not None:
            log.error("the daemon's loop has failed, so it ends; jobs go on", exc_info=failed)
        log.info("the daemon ends; %d attempts live on", len(self.loop.engine.view.live))
        await self.service.end_waiting()  # the server waits until all are answered
        self.service.outlook.close()
        await server.close()
        self.timers.stop()
        self.doorbell.close()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        await self.performer.close()
        await self.watcher.close()
        await self.launcher.close()
        await self.probe.adapter.close()
        await self.loop.close()
        if failed is not None:  # whoever has started it should see that it did not end well, and start it again
            raise GpuschedError(f"the daemon has failed: {failed}", "its log says more; jobs go on")

    def _say_hello(self) -> None:
        found = len(self.board.occupancy)
        log.info(
            "gpusched %s, process %d, socket %s: %d devices (%s)",
            __version__, os.getpid(), self.places.socket, found, self.probe.kind,
        )
        if not found and not self.board.error:  # an error is a sentence of its own, and was logged
            log.warning("no GPU found; to try gpusched without one: gpusched demo")

    async def _cut_outputs(self) -> None:
        if self.config.output_max_mib:
            jobs = [self.loop.engine.state.jobs[i] for i in self.loop.engine.view.live]
            await asyncio.to_thread(retention.cut_outputs, jobs, self.config.output_max_mib)

    async def _remove_old(self) -> None:
        now = self.clock.now().wall
        keep = frozenset(job.id for job in self.loop.engine.state.jobs.values())
        history = retention.before(self.config.history_days, now)
        checkpoints = retention.before(self.config.checkpoint_days, now)
        try:
            trimmed = await self.loop.read(lambda: self.loop.store.trim(history))
        except GpuschedError as error:
            log.warning("the history could not be trimmed: %s", error.message)
            return
        removed = await asyncio.to_thread(
            retention.remove_old, self.places, keep, history_before=history, checkpoints_before=checkpoints
        )
        if trimmed or removed:
            log.info("retention: %d old jobs and %d directories removed", trimmed, removed)


def _log_loop_trouble(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
