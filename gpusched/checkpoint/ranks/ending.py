"""The end of a rank's process: gloo's threads put down what they hold before the interpreter is taken apart.

A thread of gloo lets go of a collective's tensors a moment after it has said that the collective is complete. If the
script ends in that moment (on a busy machine it is long enough), the thread asks for an interpreter that is no more,
and the process aborts: "terminate called without an active exception", exit code 134 instead of 0, for a training that
is complete. destroy_process_group() does not help as long as anything, a DDP model for instance, refers to the group.
It concerns the script's own groups as much as ours. Must not end, close or wait for any collective.
"""

import atexit
import os
import threading
import time
from typing import Iterator

_PATIENCE = 2.0  # seconds; what computes for so long is no thread that tidies up
_LOOK = 0.001  # seconds between looks, in which this thread lets go of the interpreter
_ENOUGH = 3  # looks at which nobody was busy


def tidy_at_exit() -> None:
    """Have this process wait at its end for the threads that tidy up. Harmless when repeated."""
    atexit.unregister(_let_finish)
    atexit.register(_let_finish)


def _let_finish() -> None:
    end, quiet = time.monotonic() + _PATIENCE, 0
    while quiet < _ENOUGH and time.monotonic() < end:
        time.sleep(_LOOK)
        quiet = 0 if any(_busy()) else quiet + 1


def _busy() -> Iterator[bool]:
    """For each thread that Python has not started: whether it runs, or would if a processor were free."""
    ours = {thread.native_id for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return
    for thread in threads:
        if thread in ours:
            continue
        try:
            with open("/proc/self/task/%d/stat" % thread, "rb") as file:
                text = file.read()
        except OSError:
            continue
        yield text[text.rfind(b")") + 2 :][:1] == b"R"
