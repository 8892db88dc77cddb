"""Leaving after a stop: quickly, with the right exit code, and with nobody left behind.

    1. kill the daemonic child processes (data-loader workers): left alone they outlive the trainer by five seconds
    2. raise SystemExit, so that `finally:` and `with` of the script run
    3. when the interpreter has run the script's exit hooks, end the process: taking torch apart costs half a second
    4. a watchdog ends the process if steps 2 and 3 hang

Also the wish to stop that comes by signal: SIGTERM sets a flag, the next safe point acts on it. Nothing is ever saved
inside a signal handler, where the model may be half through an optimizer step.
"""

import atexit
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn, Optional

_PATIENCE = 10.0  # seconds for the script's own clean-up
_leaving: Optional[int] = None
_leaver = 0


def leave(code: int) -> NoReturn:
    """End the process with this exit code. Never returns."""
    global _leaving, _leaver
    _leaving, _leaver = code, os.getpid()
    if threading.current_thread() is not threading.main_thread():
        _kill_workers()
        _end_now()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would turn the next line into an exception
    _kill_workers()
    threading.Thread(target=_watchdog, daemon=True).start()
    raise SystemExit(code)


def leaving() -> Optional[int]:
    """The exit code with which this process is on its way out; None while it is not."""
    return _leaving if _leaver == os.getpid() else None


def _kill_workers() -> None:
    """Daemonic processes only: they would be ended at exit anyway, others may be the script's own business."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5.0)


def _watchdog() -> None:
    time.sleep(_PATIENCE)
    _end_now()


def _end_now() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    os._exit(_leaving or 0)


@atexit.register
def _last_hook() -> None:
    """Registered at import, so it runs after the hooks of whatever the script set up later."""
    if leaving() is None:
        return
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.shutdown()
    _end_now()


class Termination:
    """SIGTERM as a flag. A second SIGTERM ends the process at once; a handler of the script's own is left alone."""

    def __init__(self) -> None:
        self.asked = False
        self._installed = False
        self._pid = os.getpid()

    def install(self) -> None:
        mine = threading.current_thread() is threading.main_thread()
        if mine and not self._installed and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed, self._pid = True, os.getpid()

    def remove(self) -> None:
        if self._installed and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._installed = False

    def _handle(self, number: int, frame: Any) -> None:
        # a forked child inherits the handler, not the purpose: its parent means to end it
        if self.asked or os.getpid() != self._pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.asked = True
