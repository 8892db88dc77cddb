"""`gpusched demo`: the whole story in a minute, told by a daemon of its own. Touches no other daemon, cleans up."""

from __future__ import annotations

from importlib.util import find_spec

from gpusched.demo.screen import open_screen
from gpusched.demo.stage import Stage
from gpusched.demo.story import Story
from gpusched.model.errors import Refused


def run_demo(*, real: bool = False, keep: bool = False, fast: bool = False, devices: str = "sim:2x24G") -> int:
    """Play the story. Returns 0 if the resumed run ended with the very same bits as the undisturbed one, else 1.

    Raises GpuschedError where it cannot be played (no torch, no free GPU with `real`).
    """
    if find_spec("torch") is None:
        raise Refused("the demo trains with PyTorch, which is not installed", "pip install 'gpusched[torch]'")
    with Stage(devices=None if real else devices, keep=keep) as stage, open_screen(stage.directory) as screen:
        return Story(stage, screen, fast=fast).play()
