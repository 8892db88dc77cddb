"""Start, watch and stop attempts on this machine by supervisors forked from a warm process.

It keeps nothing that matters in memory: whatever it knows of an attempt it reads from the control directory, so a
launcher of a new daemon works on attempts of the old one. It never signals the job itself, only its supervisor
(or, when that is gone, what carries the attempt's mark).

All methods that are not coroutines block for a few small file operations (tens of microseconds on tmpfs), except
kill_remains, which scans /proc and waits up to five seconds: call that one off the loop.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
import signal as signals
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpusched import rundir
from gpusched.failpoints import failpoint
from gpusched.launch.doorbell import attempt_key
from gpusched.launch.reading import ORDER_LIMIT, outcome_of, read_present, saved_of
from gpusched.launch.spawner import Spawner, SpawnerGone
from gpusched.model.actions import Asked
from gpusched.model.job import AttemptKey
from gpusched.ports import LaunchError, LaunchOrder, Observation
from gpusched.supervisor import tree

KILL = "kill"
RANK = {str(Asked.SAVE): 0, str(Asked.STOP): 1, KILL: 2}
REMAINS_WITHIN = 5.0  # seconds
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing about the process that was asked for


class LocalLauncher:
    """ports.Launcher by fork. `control_root` belongs to the daemon's uid alone and is best on a tmpfs."""

    def __init__(self, control_root: Path, doorbell: Path, spawner_python: str = sys.executable) -> None:
        self._root = control_root.absolute()
        self._doorbell = doorbell.absolute()
        self._spawner = Spawner(spawner_python)
        self._pidfds: dict[AttemptKey, int] = {}  # of supervisors forked here: all there is before their claim

    async def open(self) -> None:
        """Make the root and warm the spawner. Raises LaunchError. Without it, the first start does the same."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as trouble:
            raise LaunchError(f"The run directory {self._root} cannot be created: {trouble.strerror}.") from trouble
        for half_gone in self._root.glob(".*.forgotten"):  # a crash in the middle of `forget`
            shutil.rmtree(half_gone, ignore_errors=True)
        self._spawner.open()

    @property
    def spawner_pid(self) -> int | None:
        return self._spawner.pid

    def control(self, attempt: AttemptKey) -> Path:
        """The attempt's control directory."""
        return self._root / str(attempt)

    def _file(self, attempt: AttemptKey, name: str) -> str:
        return os.path.join(self._root, str(attempt), name)

    def _claim(self, attempt: AttemptKey) -> dict[str, Any] | None:
        return read_present(self._file(attempt, rundir.CLAIM))

    # ---- start ------------------------------------------------------------------------------------------------

    async def start(self, order: LaunchOrder) -> None:
        """Have a supervisor started for the attempt. Raises LaunchError when nothing runs and nothing will.

        1. control directory and order.json; 2. the order to the spawner; 3. its answer, after the fork. A crash
        between any two is repaired by starting again: the claim lets one supervisor through.
        """
        attempt = order.attempt
        if (claim := self._claim(attempt)) is not None:
            if claim.get("revoked"):
                raise LaunchError(f"Attempt {attempt} was taken back before it started.")
            return
        self._write_order(order)
        failpoint("order-written")
        try:
            pid = await self._fork(attempt)
            failpoint("forked")
        except (LaunchError, SpawnerGone) as trouble:
            # An order whose answer never came may have been carried out: only the claim tells.
            if not self.revoke(attempt):
                return
            if isinstance(trouble, LaunchError):
                raise
            raise LaunchError(f"The process that starts jobs keeps failing: {trouble}.") from trouble
        with suppress(OSError):  # it has ended already
            self._let_go(attempt)
            self._pidfds[attempt] = os.pidfd_open(pid)

    async def _fork(self, attempt: AttemptKey) -> int:
        try:
            return await self._spawner.fork(str(self.control(attempt)))
        except SpawnerGone:  # once more, by a new one: if the old one forked before it ended, the claim decides
            return await self._spawner.fork(str(self.control(attempt)))

    def _write_order(self, order: LaunchOrder) -> None:
        path = self._file(order.attempt, rundir.ORDER)
        # The mark of an earlier try stays: its supervisor may be reading that order just now.
        earlier = rundir.read_json(path, ORDER_LIMIT) or {}
        mark = earlier.get("mark") or f"{order.attempt}-{secrets.token_hex(8)}"
        content = {
            "attempt": str(order.attempt),
            "argv": list(order.argv),
            "env": {**order.env, rundir.ENV_MARK: mark},
            "cwd": order.cwd,
            "output": order.output,
            "error": order.error,
            "job_dir": order.job_dir,
            "umask": order.umask,
            "banner": order.banner,
            "mark": mark,
            "doorbell": str(self._doorbell),
        }
        try:
            self.control(order.attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
            rundir.write_json(path, content, durable=False, mode=0o600)
        except OSError as trouble:
            raise LaunchError(f"The order for attempt {order.attempt} cannot be written: {trouble}.") from trouble

    def _let_go(self, attempt: AttemptKey) -> None:
        if (fd := self._pidfds.pop(attempt, None)) is not None:
            os.close(fd)

    def revoke(self, attempt: AttemptKey) -> bool:
        """Make sure that a start which has not happened never will. False: too late, a supervisor has claimed it."""
        self.control(attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = {"revoked": True, "boot_id": rundir.boot_id(), "claimed_at": time.time()}
        if rundir.claim(self._file(attempt, rundir.CLAIM), mine):
            return True
        return bool((self._claim(attempt) or {}).get("revoked"))

    # ---- watch ------------------------------------------------------------------------------------------------

    def observe(self, attempt: AttemptKey) -> Observation:
        """Read the attempt's control directory. Works for attempts started by an earlier daemon.

        Raises OSError if it cannot be read now.
        """
        claim = self._claim(attempt)
        if claim is None:
            return Observation()
        if claim.get("revoked"):
            return Observation(revoked=True, boot_id=claim.get("boot_id"))
        # Alive is read before the ending: an ending that is there although the lock was held is the truth too,
        # while the other order could see neither of a supervisor that ends in between.
        alive = self._lock_is_held(attempt)
        status = read_present(self._file(attempt, rundir.STATUS)) or {}
        ending = read_present(self._file(attempt, rundir.EXIT))
        return Observation(
            claimed=True,
            alive=alive,
            boot_id=claim.get("boot_id"),
            supervisor_pid=claim.get("supervisor"),
            mark=claim.get("mark"),
            pid=status.get("pid"),
            watching=bool(status.get("watching")),
            saved=saved_of(status.get("saved")),
            progress=status.get("progress") or {},
            outcome=None if ending is None else outcome_of(ending),
        )

    def _lock_is_held(self, attempt: AttemptKey) -> bool:
        try:
            fd = os.open(self._file(attempt, rundir.LOCK), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two observers do not see each other
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def attempts(self) -> tuple[AttemptKey, ...]:
        """All attempts that have a control directory, in order."""
        try:
            names = os.listdir(self._root)
        except OSError:
            return ()
        return tuple(sorted(key for name in names if (key := attempt_key(name)) is not None))

    async def ended(self, attempt: AttemptKey) -> None:
        """Wait until the attempt's supervisor is gone (returns at once if there is none). Raises OSError."""
        # More than once, because the supervisor forked here can turn out to be a second one that found the claim
        # of the first and left.
        while (fd := self._supervisor(attempt)) is not None:
            await _readable(fd)
            self._let_go(attempt)

    def _supervisor(self, attempt: AttemptKey) -> int | None:
        """A pidfd of the living supervisor, to be closed by the caller; None if there is none. Raises OSError."""
        claim = self._claim(attempt)
        if claim is None:
            held = self._pidfds.get(attempt)
            return None if held is None else os.dup(held)
        try:
            fd = os.pidfd_open(claim["supervisor"])
        except KeyError:  # revoked
            return None
        except OSError as trouble:
            if trouble.errno in SHORT_OF:
                raise
            return None  # ended; its pid may even be a thread's by now
        # 1. the pidfd pins whoever has the pid; 2. if the lock is held after that, the supervisor was alive at 1,
        # so the pid was its own and not reused by another process (or another boot).
        alive = False
        try:
            alive = self._lock_is_held(attempt)
        finally:
            if not alive:
                os.close(fd)
        return fd if alive else None

    # ---- stop -------------------------------------------------------------------------------------------------

    def ask(self, attempt: AttemptKey, what: Asked, *, cause: str, deadline: float | None, signal: int) -> None:
        """Hand a request to the supervisor. Asking the same again is harmless."""
        wish = {"what": str(what), "cause": cause, "deadline": deadline, "signal": signal}
        self._hand_over(attempt, wish)

    def kill(self, attempt: AttemptKey) -> None:
        """Have the supervisor kill the whole tree."""
        self._hand_over(attempt, {"what": KILL, "cause": "", "deadline": None, "signal": int(signals.SIGKILL)})

    def _hand_over(self, attempt: AttemptKey, wish: dict[str, Any]) -> None:
        # 1. ask.json; 2. look for the supervisor; 3. SIGUSR1 to it. One that claims the attempt after 2 reads
        # ask.json by itself, because it looks there after its claim. A crash between 1 and 3 is repaired by asking
        # again: the file stays as it is and 3 is repeated; the supervisor carries out each seq once.
        # One that is asked even before its start finds the ask too, so the directory may have to be made here.
        self.control(attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
        last = rundir.read_json(self._file(attempt, rundir.ASK))
        if last is None or not self._covers(attempt, last, wish):
            number = 1 if last is None else last["seq"] + 1
            rundir.write_json(self._file(attempt, rundir.ASK), {"seq": number, **wish}, durable=False)
        if (fd := self._supervisor(attempt)) is not None:
            with suppress(ProcessLookupError):
                signals.pidfd_send_signal(fd, signals.SIGUSR1)
            os.close(fd)

    def _covers(self, attempt: AttemptKey, last: dict[str, Any], wish: dict[str, Any]) -> bool:
        """The last ask makes this one superfluous: it is the same, or it asks for more (kill > stop > save)."""
        if RANK[last["what"]] != RANK[wish["what"]]:
            return bool(RANK[last["what"]] > RANK[wish["what"]])
        if {**wish, "seq": last["seq"]} != last:
            return False
        # "Save now" can be meant anew each time; it is the same one only as long as nobody has heard it.
        done = (rundir.read_json(self._file(attempt, rundir.SIGNALLED)) or {}).get("seq", 0)
        return wish["what"] != str(Asked.SAVE) or bool(done < last["seq"])

    def kill_remains(self, attempt: AttemptKey) -> int:
        """Kill processes of an attempt whose supervisor is gone. Returns how many were found.

        Blocks: scans /proc, at least once, until nothing is left or five seconds have passed.
        """
        order = rundir.read_json(self._file(attempt, rundir.ORDER), ORDER_LIMIT) or {}
        mark, control = order.get("mark"), str(self.control(attempt))
        return tree.kill_marked(rundir.ENV_MARK, mark, REMAINS_WITHIN, control) if mark else 0

    # ---- let go -----------------------------------------------------------------------------------------------

    def forget(self, attempt: AttemptKey) -> None:
        """Remove the control directory."""
        self._let_go(attempt)
        # Renamed first: it is gone at once, also for a supervisor that is about to write its last status.
        gone = self._root / f".{attempt}.forgotten"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.control(attempt).rename(gone)
            failpoint("forgetting")
        shutil.rmtree(gone, ignore_errors=True)

    async def close(self) -> None:
        """Let go; attempts live on."""
        await self._spawner.close()
        for attempt in list(self._pidfds):
            self._let_go(attempt)


async def _readable(fd: int) -> None:
    """Wait until a descriptor is readable (a pidfd is when its process has ended), and close it."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
