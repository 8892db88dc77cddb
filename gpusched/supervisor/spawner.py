"""The warm process that forks supervisors, so that starting a job costs a fork and not an interpreter.

One forked process always stands by, so that not even the fork is waited for.

The daemon runs `/abs/python -I -S /abs/spawner.py` in `/` with a socket as stdin and sends one JSON line per order,
{"n": number, "dir": control directory}; the answer is {"n", "pid"} or {"n", "error"}. At end of file (the daemon
has ended, however) it ends too; supervisors are not touched. Only gpusched's own files are importable here: neither
site-packages nor the working directory, so nothing that a user can write is ever run by the daemon's uid.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, NoReturn


def own_package_only() -> None:
    """Make `gpusched.…` importable from where this file lies, and nothing beside it."""
    package = ModuleType("gpusched")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["gpusched"] = package


class Spare(NamedTuple):
    """A process that stands by to become the supervisor of one attempt."""

    pid: int
    orders: int  # write end of its pipe


def serve(stand_by: Callable[[int], NoReturn], stdin: int = 0) -> None:
    """Start one supervisor per order until end of file, by a process that stands by already."""
    waiting = b""
    spare = _try_fork(stand_by)
    while True:
        try:
            data = os.read(stdin, 65536)
        except ConnectionError:
            return
        if not data:
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            answer = json.dumps({"n": order["n"], **_start(spare, stand_by, order["dir"])})
            try:
                os.write(stdin, answer.encode() + b"\n")
            except OSError:
                pass  # the daemon is gone; orders that it sent before are still carried out
            spare = _try_fork(stand_by)


def _start(spare: Spare | None, stand_by: Callable[[int], NoReturn], control: str) -> dict[str, object]:
    """Hand the order to the spare, or to a new process if there is none or it has died."""
    if spare is not None and _hand_over(spare, control):
        return {"pid": spare.pid}
    try:
        fresh = _fork(stand_by)
    except OSError as trouble:
        return {"error": f"no process could be forked: {trouble.strerror}"}
    return {"pid": fresh.pid} if _hand_over(fresh, control) else {"error": "the forked process has died at once"}


def _hand_over(spare: Spare, control: str) -> bool:
    """Tell it the control directory. False: it is dead, and nobody has the order."""
    try:
        os.write(spare.orders, os.fsencode(control))
    except OSError:
        return False
    finally:
        os.close(spare.orders)
    return True


def _fork(stand_by: Callable[[int], NoReturn]) -> Spare:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            stand_by(reading)
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Spare(pid, writing)


def _try_fork(stand_by: Callable[[int], NoReturn]) -> Spare | None:
    try:
        return _fork(stand_by)
    except OSError:
        return None  # said when an order comes and it fails again


def main() -> None:
    own_package_only()
    # Everything is imported before the first fork: an upgrade of the files must not meet running supervisors.
    from gpusched.supervisor.supervise import PR_SET_NAME, WAKERS, _libc, rehearse, stand_by

    # Once, here: what this process inherited (a nohup, a service manager) is nothing that jobs should inherit.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors: no zombies
    signal.pthread_sigmask(signal.SIG_SETMASK, WAKERS)  # a supervisor must not be killed by an early SIGUSR1
    _libc.prctl(PR_SET_NAME, b"gpusched-spawn", 0, 0, 0)
    for _ in range(10):  # the interpreter adapts code that runs often
        rehearse()
    gc.collect()
    gc.freeze()  # what is here now stays shared between all supervisors
    serve(stand_by)


if __name__ == "__main__":
    main()
