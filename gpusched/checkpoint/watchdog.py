"""Says so when safe points are too rare for the scheduler's patience: once before it matters, and when it matters.

A thread, because a loop that never comes by a safe point cannot notice it. It looks once a second, never touches
torch, and never ends anything itself.
"""

import os
import threading
import time
from typing import Callable, Optional

from gpusched import rundir
from gpusched.checkpoint.mailbox import Request

_FIRST_WORD = 5.0  # seconds after a request; most loops come by a safe point long before


class Watchdog:
    """Watches over the distance between safe points while a run is on.

    asked: looks for a request without taking it. tell: says a sentence. where: the present place in words.
    collect: called once a second, for what was written behind the training.
    """

    def __init__(
        self,
        asked: Callable[[], Optional[Request]],
        tell: Callable[[str], None],
        where: Callable[[], str],
        collect: Callable[[], None],
    ) -> None:
        self._asked, self._tell, self._where, self._collect = asked, tell, where, collect
        self._grace = seconds_in(os.environ.get(rundir.ENV_GRACE, ""))
        self._last = time.monotonic()
        self._told_request = -1
        self._told_rare = False
        self._end = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def start(self) -> None:
        self._last = time.monotonic()
        if self._thread is None:
            self._end = threading.Event()  # a new one: the thread of an earlier phase may still be looking
            watch = (self._end,)
            self._thread = threading.Thread(target=self._watch, args=watch, name="gpusched-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread = None

    def seen(self, now: float) -> None:
        """A safe point was reached."""
        self._last = now

    def _watch(self, end: threading.Event) -> None:
        mine = os.getpid()
        while not end.wait(1.0) and os.getpid() == mine:
            self.look(time.monotonic())
            self._collect()

    def look(self, now: float) -> None:
        """Tell what is to be told at this moment; called by the thread, and by tests."""
        silent, request = now - self._last, self._asked()
        if request is None:
            if not self._told_rare and self._grace is not None and silent > self._grace:
                self._told_rare = True
                text = "no safe point for %.0f s (%s), and gpusched waits %.0f s at a preemption: call run.check() in "
                text += "long evaluation and warm-up loops, or submit with a longer --grace"
                self._tell(text % (silent, self._where(), self._grace))
            return
        left = request.until - now
        patience = min(_FIRST_WORD, max(1.0, (left + silent) / 4))
        if request.seq != self._told_request and silent > patience:
            self._told_request = request.seq
            end = " It ends this process in %.0f s." % left if left < float("inf") else ""
            self._tell(
                "asked to %s, but no safe point was reached for %.0f s (%s).%s Only run.step(), run.micro_step() and "
                "run.check() are safe points" % ("stop" if request.stop else "save", silent, self._where(), end)
            )


def seconds_in(text: str) -> Optional[float]:
    """A number from the environment; None if there is none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
