"""A trace of a run for `gpusched rehearse`: at each safe point one line of JSON that says what everything was then.

Active only where GPUSCHED_TRACE names a file (rank r > 0 appends `.rank<r>`). Two traces of the same script tell the
first step at which they part, and what was the first to differ; gpusched/rehearse/diagnose.py reads them.

    {"trace": 1, "rank", "directory", "seed", "pid"}     once per Run, at its first safe point
    {"n": which safe point of this process, "run": which Run of it, "kind": "step"|"micro_step"|"check"|"epoch",
     "phase", "epoch", "batch", "step", "calls": batches handed out by each loop of the epoch so far,
     "call": which of these loops is running, or null,
     "metrics", "rng", "batches", "values", "parts", "objects", "plain": values or marks (see marks.py),
     "at": [[file, line, function], ...], innermost first; only if it is another place than before}

`batches` has a mark for each batch handed out since the point before; `parts` is absent at some points of a run with
much state. Must not draw a random number, nor fail a run: what cannot be written is not traced.
"""

import itertools
import json
import os
from typing import Any, Dict, List, Optional

from gpusched import rundir
from gpusched.checkpoint import surroundings
from gpusched.checkpoint.errors import say
from gpusched.checkpoint.marks import global_generators, mark, size_of

_AT_ONCE = 256 << 20  # bytes of state that are marked at every safe point; of twice as many at every other one

# One safe point after the other, and one Run after the other, in this process; a forked worker reaches none.
_points, _runs = itertools.count(1), itertools.count()


class Trace:
    """Writes the lines. `batch()` for every batch that a loop is about to hand out, `point()` at every safe point."""

    def __init__(self, path: str) -> None:
        self._path, self._fd = path, -1
        self._run = next(_runs)
        self._dead = False
        self._batches: List[str] = []
        self._every = 0
        self._at: Any = None
        self._surroundings = surroundings.Surroundings()

    @staticmethod
    def from_environment() -> "Optional[Trace]":
        """For a Run that is being made. The file is there from now on: a run without safe points leaves it empty."""
        path = os.environ.get(rundir.ENV_TRACE)
        if not path:
            return None
        try:
            with open(path, "ab"):
                pass
        except OSError as error:
            say("cannot write the trace %s (%s)" % (path, error.strerror))
            return None
        return Trace(path)

    def batch(self, item: Any) -> None:
        """A batch is handed out."""
        if not self._dead:
            self._batches.append(mark(item))

    def point(self, kind: str, run: Any) -> None:
        """A safe point is reached and nothing has been saved or asked for at it yet. kind: step, micro_step…"""
        keeper = run._keeper
        if self._dead or (self._fd < 0 and not self._open(run)):
            return
        position, stack = keeper.position, surroundings.frames()
        active = position.active()
        line: Dict[str, Any] = {
            "n": next(_points),
            "run": self._run,
            "kind": kind,
            "phase": position.phase,
            "epoch": position.epoch,
            "batch": position.batch,
            "step": position.steps,
            "calls": [call.count for call in position.calls],
            "call": position.calls.index(active) if active is not None else None,
            "metrics": run._progress.latest(),
            "rng": global_generators(),
            "batches": self._batches,
            "values": {str(name): mark(value) for name, value in run.values.items()},
        }
        self._batches = []
        self._add_state(line, run, stack)
        at = surroundings.places(stack)
        if at != self._at:
            self._at = line["at"] = at
        self._write(line)

    def _add_state(self, line: Dict[str, Any], run: Any, stack: List[Any]) -> None:
        state = run.state()
        if not self._every:
            self._every = 1 + size_of(state) // _AT_ONCE
        if line["step"] % self._every == 0:
            line["parts"] = {name: mark(tree) for name, tree in state.items()}
        registered = run._keeper.registry.targets
        objects = self._surroundings.objects((line["phase"], line["epoch"]), stack, registered, run)
        if objects:
            line["objects"] = objects
        line["plain"] = surroundings.plain(stack)

    def _open(self, run: Any) -> bool:
        rank = int(getattr(getattr(run, "ranks", None), "rank", 0))
        path = "%s.rank%d" % (self._path, rank) if rank else self._path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            say("cannot write the trace %s (%s)" % (path, error.strerror))
            self._dead = True
            return False
        self._write({"trace": 1, "rank": rank, "directory": run.directory, "seed": run.seed, "pid": os.getpid()})
        return True

    def _write(self, line: Dict[str, Any]) -> None:
        """One write for one line, so that a process that is killed leaves whole lines."""
        try:
            os.write(self._fd, json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n")
        except OSError:
            pass  # the disk is full: the rehearsal will say that the trace ends too early
