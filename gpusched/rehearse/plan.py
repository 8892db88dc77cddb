"""What is to be rehearsed: a command, how often it is preempted, and what to compare."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RUN = "{run}"  # in words of the command, --compare and --workdir: the folder of each run

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """One rehearsal.

    compare: files that the command writes, compared after it. workdir: where the command runs ("": here). folder:
    where the runs' own folders are made. grace: seconds that a command may take to leave once it is asked.
    """

    command: tuple[str, ...]
    folder: str
    preemptions: int = 3
    seed: int = 0
    compare: tuple[str, ...] = ()
    workdir: str = ""
    grace: float = 60.0
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    start: Callable[..., Any] | None = None  # another way to start a process, for tests

    def words(self, run: str) -> list[str]:
        """The command of the run with this folder."""
        return [word.replace(RUN, run) for word in self.command]

    def directory(self, run: str) -> str:
        """Where the command of this run works; made if it is one of the run's own."""
        return os.path.abspath(self.workdir.replace(RUN, run) or os.curdir)

    def file(self, name: str, run: str) -> str:
        """The path of a file of --compare in this run."""
        return os.path.join(self.directory(run), os.path.expanduser(name.replace(RUN, run)))

    def shown(self) -> str:
        return shlex.join(self.command)
