"""`gpusched demo`: the whole story in a minute, told by a daemon of its own. Touches no other daemon, cleans up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from gpusched.demo.screen import open_screen
from gpusched.demo.stage import Stage
from gpusched.demo.story import Story
from gpusched.model.errors import Refused


def run_demo(
    *, real: bool = False, keep: bool = False, fast: bool = False, devices: str = "sim:2x24G", color: bool = True
) -> int:
    """Play the story. Returns 0 if the resumed run ended with the very same bits as the undisturbed one, else 1.

    Raises GpuschedError where it cannot be played (no torch, no free GPU with `real`).
    """
    if find_spec("torch") is None:
        raise Refused("the demo trains with PyTorch, which is not installed", "pip install 'gpusched[torch]'")
    with _cleaning_up_when_told_to_end():
        with Stage(devices=None if real else devices, keep=keep) as stage, open_screen(color=color) as screen:
            return Story(stage, screen, fast=fast).play()


@contextmanager
def _cleaning_up_when_told_to_end() -> Iterator[None]:
    """A closed terminal or `timeout` must not leave a daemon and its jobs behind, no more than Ctrl-C does.

    Only the first signal counts: `timeout` hands a Ctrl-C on that the demo has had already, and people are impatient.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
