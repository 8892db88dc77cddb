"""The training-side library of gpusched: a run that was preempted ends like one that was not.

Runs in the user's training environment: Python 3.9 or newer, the standard library, and torch and numpy only where the
script uses them. Importing it imports neither. See run.py for what `Run` does, files.py for what lies on disk.
"""

from gpusched.checkpoint.disk.files import Checkpoint, list_checkpoints
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.fingerprint import digest
from gpusched.checkpoint.run import Run

__all__ = ["Checkpoint", "CheckpointError", "Run", "digest", "list_checkpoints"]
