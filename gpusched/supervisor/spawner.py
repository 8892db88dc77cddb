"""The warm process that forks supervisors, so that starting a job costs a fork and not an interpreter.

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
from typing import NoReturn


def own_package_only() -> None:
    """Make `gpusched.…` importable from where this file lies, and nothing beside it."""
    package = ModuleType("gpusched")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["gpusched"] = package


def serve(supervise: Callable[[str], NoReturn], stdin: int = 0) -> None:
    """Fork one supervisor per order until end of file."""
    waiting = b""
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
            answer = json.dumps({"n": order["n"], **_fork(supervise, order["dir"])})
            try:
                os.write(stdin, answer.encode() + b"\n")
            except OSError:
                pass  # the daemon is gone; orders that it sent before are still carried out


def _fork(supervise: Callable[[str], NoReturn], control: str) -> dict[str, object]:
    try:
        pid = os.fork()
    except OSError as trouble:
        return {"error": f"no process could be forked: {trouble.strerror}"}
    if pid == 0:
        supervise(control)
    return {"pid": pid}


def main() -> None:
    own_package_only()
    # Everything is imported before the first fork: an upgrade of the files must not meet running supervisors.
    from gpusched.supervisor.supervise import PR_SET_NAME, WAKERS, _libc, supervise

    # Once, here: what this process inherited (a nohup, a service manager) is nothing that jobs should inherit.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors: no zombies
    signal.pthread_sigmask(signal.SIG_SETMASK, WAKERS)  # a supervisor must not be killed by an early SIGUSR1
    _libc.prctl(PR_SET_NAME, b"gpusched-spawn", 0, 0, 0)
    gc.collect()
    gc.freeze()  # what is here now stays shared between all supervisors
    serve(supervise)


if __name__ == "__main__":
    main()
