"""What a training script may ask its Run: where it is, and what belongs to it. Changes nothing."""

import os
from typing import Any, Dict, Optional

from gpusched import rundir
from gpusched.checkpoint.keeper import Keeper


class Facts:
    """The part of a Run that only tells."""

    _keeper: Keeper
    _count = 0  # epochs of this phase
    _total: Optional[int] = None
    _lengths: Dict[int, Optional[int]] = {}  # of the loaders of this epoch, by the number of the call

    @property
    def values(self) -> Dict[str, Any]:
        """Plain values of the script (running sums, the best score so far…), saved and restored with the rest."""
        return self._keeper.values

    @property
    def epoch(self) -> int:
        """The present epoch, counted from 0."""
        return self._keeper.position.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps taken in the whole run, those before a resume included."""
        return self._keeper.position.steps

    @property
    def batch(self) -> int:
        """The present batch within the epoch, counted from 0 over stops (unlike enumerate); before the loop, its first.

        So `enumerate(run.batches(loader), start=run.batch)` counts on after a stop.
        """
        call = self._keeper.position.training_call()
        if call is None or not (call.entered or call.done):
            return call.count if call else 0
        return max(0, call.count - 1)

    @property
    def seed(self) -> int:
        """What the order of samples and their random transforms depend on; after a resume, the checkpoint's."""
        return self._keeper.seed

    @property
    def directory(self) -> Optional[str]:
        """Where checkpoints are written; None if nothing is saved."""
        return self._keeper.vault.directory if self._keeper.vault else None

    @property
    def total(self) -> Optional[int]:
        """Steps at the end of run.epochs(), as far as the loader's length tells; else None."""
        position = self._keeper.position
        call = position.training_call()
        index = position.calls.index(call) if call is not None else -1
        self._total = position.total(self._count, self._lengths.get(index)) or self._total
        return self._total

    def state(self) -> Dict[str, Any]:
        """The state of everything registered, by name, as a checkpoint would hold it (references, not copies)."""
        return self._keeper.registry.capture()

    def _where(self) -> str:
        return "epoch %d, batch %d, step %d" % (self.epoch, self.batch, self.steps)


def trace_of_rehearsal() -> Any:
    """A trace of the run, if it is being rehearsed."""
    if not os.environ.get(rundir.ENV_TRACE):
        return None
    from gpusched.checkpoint.trace import Trace

    return Trace.from_environment()
