"""The life of one attempt: claim it, start the job, carry out asks, reap everything, write down how it ended.

Single-threaded and without signal handlers: SIGCHLD and SIGUSR1 stay blocked and are taken with sigtimedwait, so
that none can arrive at a wrong moment or be lost. No user code runs here, and the user's files are only read
through jobdir.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import time
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from gpusched import rundir
from gpusched.supervisor import jobdir, tree
from gpusched.supervisor.asks import Asks, request_of
from gpusched.supervisor.jobside import IGNORED, become_job

WAKERS = frozenset({signal.SIGCHLD, signal.SIGUSR1})
ORDER_LIMIT = 64 << 20  # bytes; submits are refused long before
LOOK_FIRST, LOOK_LATER = 0.1, 1.0  # seconds between looks at the job directory: soon at first, then seldom
SWEEP_GRACE = 2.0  # seconds that what the main process left behind has to end by itself
ORDERS = 3  # descriptor
NOWHERE = "/proc/gpusched"  # a directory that nobody can create
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


def stand_by(orders: int) -> NoReturn:
    """Wait, in this freshly forked process, for a control directory, run its attempt, and exit.

    orders: read end of a pipe that brings the directory's path and then its end of file. Without a path (the
    spawner has ended) nothing is done.
    """
    control = ""
    try:
        _detach(orders)
        if not _readable(ORDERS):  # nobody waits yet
            rehearse()
        control = _read_all(ORDERS)
        os.close(ORDERS)
        if control:
            _run(control)
    except BaseException:
        path = os.path.join(control or NOWHERE, rundir.SUPERVISOR_LOG)
        with suppress(OSError), open(path, "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    finally:
        os._exit(0)


def _run(control: str) -> None:
    """The attempt of this control directory, if it is this process's to run."""
    order = rundir.read_json(os.path.join(control, rundir.ORDER), ORDER_LIMIT)
    if order is not None and take(control, order["mark"]):
        _libc.prctl(PR_SET_NAME, f"gpusched {order['attempt']}".encode(), 0, 0, 0)
        Supervisor(control, order).run()


def _readable(fd: int) -> bool:
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    return bool(ready.poll(0))


def _read_all(fd: int) -> str:
    said = b""
    while data := os.read(fd, 65536):
        said += data
    return os.fsdecode(said)


def rehearse() -> None:
    """Go through an attempt's motions with no job, no file and nobody to tell, because the first time is the slowest.

    In the spawner, it has the interpreter adapt the code once for all supervisors; in a process that stands by, it
    has the kernel copy the pages that will be written to before somebody waits for it. Only while this process has no
    children: it reaps.
    """
    sample = {"attempt": "0-0", "job_dir": NOWHERE, "doorbell": os.path.join(NOWHERE, "bell"), "mark": "", "env": {}}
    order = json.loads(json.dumps(sample))
    with suppress(OSError):
        take(NOWHERE, order["mark"])
    rundir.boot_id()
    player = Supervisor(NOWHERE, order)
    player.publish(pid=0)
    player.carry_out_asks()
    player.look()
    player.reap()
    player.code = 0
    player.finish()


def _detach(orders: int) -> None:
    """Let go of everything of the spawner and the daemon but the orders, which become descriptor ORDERS; become the
    reaper of all that the job will leave."""
    os.dup2(orders, ORDERS)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(ORDERS + 1, 1 << 20)
    os.chdir("/")
    with suppress(OSError):  # already a leader
        os.setsid()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, WAKERS)
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the reaper of orphaned processes")


def take(control: str, mark: str) -> bool:
    """Hold the lock and the claim of this attempt. False: it was revoked, or another supervisor has it."""
    # 1. the lock, so that whoever sees our claim also sees the lock held for as long as we live;
    # 2. the claim, which decides against a second supervisor and against the daemon's revoke.
    # A lock that is held before there is a claim belongs to a supervisor between 1 and 2, which may die there.
    claim = os.path.join(control, rundir.CLAIM)
    lock = os.open(os.path.join(control, rundir.LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not os.path.exists(claim):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.002)
            continue
        mine = {"supervisor": os.getpid(), "boot_id": rundir.boot_id(), "claimed_at": time.time(), "mark": mark}
        return rundir.claim(claim, mine)
    return False


class Supervisor:
    """One attempt, from fork to exit.json."""

    def __init__(self, control: str, order: dict[str, Any]) -> None:
        self.control = control
        self.order = order
        self.attempt = int(order["attempt"].rpartition("-")[2])
        self.job_dir: str = order["job_dir"]
        self.me = os.getpid()
        self.pid = 0  # the job's main process
        self.code: int | None = None  # its wait status as os.waitstatus_to_exitcode gives it; None while it lives
        self.alone = False  # nothing below this process is left
        self.failure: dict[str, Any] | None = None  # why there was no exec
        self.killed = False
        self.asks = Asks(control)
        self.status: dict[str, Any] = {"pid": None, "watching": False, "saved": None, "progress": {}}
        self.traces: dict[str, jobdir.Trace] = {}
        self.watcher: int | None = None
        self.unheard = False  # the doorbell was full
        self.pause = LOOK_FIRST

    def run(self) -> None:
        self.start()
        if self.failure is None:
            if self.code is None:
                self.publish(pid=self.pid)
            while self.code is None:
                self.carry_out_asks()
                if self.code is None:
                    self.wait(self.pause)
                    self.look()
        self.sweep()
        self.finish()

    # ---- the job ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork the job and wait until it has exec'd or failed to. A step before exec may hang, so kill works here;
        a stop waits for the exec, because a signal before it would hit the supervisor's dispositions."""
        # 1. the child holds the control directory from the fork to the exec; 2. the exec brings the mark. Should this
        # process be killed meanwhile, the one or the other tells whose remains the child is (tree.marked).
        held = os.open(self.control, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
        except OSError as trouble:
            text = f"No process could be forked for the job: {trouble.strerror}. Too many processes run here."
            self.failure = {"errno": trouble.errno, "text": text}
            return
        if self.pid == 0:
            become_job(self.order, writing, held)
        os.close(writing)
        os.close(held)
        ready = select.poll()
        ready.register(reading, select.POLLIN)
        said = b""
        while True:
            if ready.poll(50):
                data = os.read(reading, 65536)
                if not data:
                    break
                said += data
            elif (ask := self.asks.next()) and ask["what"] == "kill":
                self.kill(ask)
                break
        os.close(reading)
        self.failure = json.loads(said) if said else None
        self.order = {key: value for key, value in self.order.items() if key not in ("env", "argv")}

    def wait(self, seconds: float) -> None:
        """Sleep until something happens or the time is over, then reap."""
        signal.sigtimedwait(WAKERS, seconds)
        self.reap()

    def reap(self) -> None:
        """Collect every dead child: the main process's code, and orphans so that no zombie stays."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.alone = True
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.code = os.waitstatus_to_exitcode(status)

    # ---- asks -------------------------------------------------------------------------------------------------

    def carry_out_asks(self) -> None:
        ask = self.asks.next()
        if ask is None:
            return
        if ask["what"] == "kill":
            self.kill(ask)
        elif ask["what"] == "stop":
            self.stop(ask)
        else:
            jobdir.write_request(self.job_dir, request_of(ask))
            self.asks.carried_out(ask, None)
        self.pause = LOOK_FIRST  # an answer is expected soon

    def stop(self, ask: dict[str, Any]) -> None:
        """The request, then the signal: only to the main process, only if the job does not poll for requests, and
        each signal number at most once (a second one would cut off the save that the first one began)."""
        jobdir.write_request(self.job_dir, request_of(ask))
        number = int(ask["signal"])
        wanted = number > 0 and number not in self.asks.sent and not self.is_watching()
        self.asks.carried_out(ask, number if wanted else None)
        self.reap()
        if wanted and self.code is None:  # not reaped: the pid is still this process's
            os.kill(self.pid, number)
            if (found := tree.stat(self.pid)) is not None and found.state in "Tt":
                os.kill(self.pid, signal.SIGCONT)  # a stopped process would sleep through its grace period

    def is_watching(self) -> bool:
        """The job has announced a watcher, and that is a living process of this very tree."""
        pid = jobdir.watcher(self.job_dir)
        return pid is not None and tree.is_below(pid, self.me)

    def kill(self, ask: dict[str, Any]) -> None:
        self.reap()
        self.killed = self.killed or self.code is None
        self.asks.carried_out(ask, int(signal.SIGKILL))
        self.kill_tree()

    def kill_tree(self) -> None:
        """SIGKILL everything below, again and again, until nothing is left."""
        pause = 0.001
        self.reap()
        while not self.alone:
            for process in tree.descendants(self.me):
                tree.send(process, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, pause)
            pause = min(2 * pause, 1.0)  # what waits in the kernel (a driver, a dead file server) cannot be hurried
            self.reap()
        tree.kill_marked(rundir.ENV_MARK, self.order["mark"], 5.0)  # what got below another process by a trick

    def sweep(self) -> None:
        """End what the main process left behind: SIGTERM, a short grace, SIGKILL. No delay if nothing is left."""
        end = time.monotonic() + SWEEP_GRACE
        told: set[tree.Process] = set()
        self.reap()
        while not self.alone and time.monotonic() < end:
            for process in tree.descendants(self.me):
                if process not in told and tree.send(process, signal.SIGTERM):
                    tree.send(process, signal.SIGCONT)
                told.add(process)
            self.wait(0.1)
            if not self.alone and (ask := self.asks.next()) and ask["what"] == "kill":
                self.kill(ask)
        if not self.alone:
            self.kill_tree()

    # ---- telling the daemon -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Read what changed in the job directory, and pass it on."""
        self.pause = min(2 * self.pause, LOOK_LATER)
        traces = jobdir.traces(self.job_dir)
        before, self.traces = self.traces, traces
        news: dict[str, Any] = {}
        if traces.get(rundir.WATCHING) != before.get(rundir.WATCHING):
            self.watcher = jobdir.watcher(self.job_dir)
            news["watching"] = self.watcher is not None and tree.is_below(self.watcher, self.me)
        elif self.status["watching"] and not os.path.exists(f"/proc/{self.watcher}"):
            news["watching"] = False
        if traces.get(rundir.SAVED) != before.get(rundir.SAVED):
            news["saved"] = jobdir.saved(self.job_dir, self.attempt) or self.status["saved"]
        if traces.get(rundir.PROGRESS) != before.get(rundir.PROGRESS):
            news["progress"] = jobdir.progress(self.job_dir) or self.status["progress"]
        self.publish(**news)

    def publish(self, **news: Any) -> None:
        """Write status.json if it changed, and ring. Best effort: the next change or exit.json says it again."""
        status = {**self.status, **news}
        if status != self.status:
            self.status = status
            with suppress(OSError):
                rundir.write_json(os.path.join(self.control, rundir.STATUS), status, durable=False)
            self.ring()
        elif self.unheard:
            self.ring()

    def ring(self) -> None:
        """Poke the daemon; nobody there is fine, because a daemon that starts reads the files."""
        self.unheard = False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bell:
                with rundir.unix_address(self.order["doorbell"]) as address:
                    bell.sendto(self.order["attempt"].encode(), address)
        except BlockingIOError:
            self.unheard = True  # its queue is full: ring again at the next look
        except OSError:
            pass

    def finish(self) -> None:
        """Everything is reaped: write exit.json, and only then let go of the lock by ending."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        failed = self.failure
        saved = None if failed else jobdir.saved(self.job_dir, self.attempt) or self.status["saved"]
        code = self.code if self.code is not None else 0
        kind = "launch-failed" if failed else "signalled" if code < 0 else "exited"
        self.record(
            {
                "kind": kind,
                "code": code if kind == "exited" else None,
                "signal": -code if kind == "signalled" else None,
                "errno": failed["errno"] if failed else None,
                "text": failed["text"] if failed else "",
                "saved": saved,
                "killed": self.killed,
                "max_rss_mib": used.ru_maxrss // 1024,
                "cpu_s": round(used.ru_utime + used.ru_stime, 3),
                "ended_wall": time.time(),
                "ended_boot": time.clock_gettime(time.CLOCK_BOOTTIME),
            }
        )
        self.unheard = True  # rings, whether the last status differs or not
        self.publish(
            watching=False, saved=saved, progress=jobdir.progress(self.job_dir) or self.status["progress"]
        )

    def record(self, ending: dict[str, Any]) -> None:
        """Write exit.json. A full disk is given half a minute, because without this file the attempt is LOST."""
        end = time.monotonic() + 30
        while True:
            try:
                return rundir.write_json(os.path.join(self.control, rundir.EXIT), ending, durable=False)
            except FileNotFoundError:
                return None  # the attempt was forgotten
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.25)
