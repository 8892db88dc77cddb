"""The training-side library of gpusched: a run that was preempted ends like one that was not.

Runs in the user's training environment: Python 3.9 or newer, the standard library, and torch and numpy only where the
script uses them. Importing it imports neither. See run.py for what `Run` does, files.py for what lies on disk.
"""

from typing import TYPE_CHECKING, Any

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.run import Run

if TYPE_CHECKING:
    from gpusched.checkpoint.data.exact import exact_loader
    from gpusched.checkpoint.disk.files import Checkpoint, list_checkpoints
    from gpusched.checkpoint.fingerprint import digest
    from gpusched.checkpoint.ranks.logical import LogicalRanks
    from gpusched.checkpoint.weights import load_weights

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LogicalRanks",
    "Run",
    "digest",
    "exact_loader",
    "list_checkpoints",
    "load_weights",
]

_LATER = {
    "Checkpoint": "gpusched.checkpoint.disk.files",
    "LogicalRanks": "gpusched.checkpoint.ranks.logical",
    "digest": "gpusched.checkpoint.fingerprint",
    "exact_loader": "gpusched.checkpoint.data.exact",
    "list_checkpoints": "gpusched.checkpoint.disk.files",
    "load_weights": "gpusched.checkpoint.weights",
}


def __getattr__(name: str) -> Any:
    """What not every script needs, or is written on top of torch, is imported when it is first asked for."""
    if name not in _LATER:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
