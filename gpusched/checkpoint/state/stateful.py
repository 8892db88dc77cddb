"""The part that any registered object is at least: it has state_dict() and load_state_dict().

Every part has `capture()` and `restore(tree)`, which returns sentences for the user. What is small and likes to be
touched by the code around a training loop (schedulers, counters, metrics, learning rates) is also taken alone:
`capture_small()` keeps a copy where an evaluation begins, and `restore_small(tree)` puts it back once more after the
first lines of a resumed epoch have run. Both small ones speak of entries of the same tree.
"""

import copy
from typing import Any, List

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import fit


class StatefulPart:
    """Anything with state_dict() and load_state_dict(): schedulers, scalers, the user's own objects."""

    heavy = False  # weights and moments, which are never copied for capture_small

    def __init__(self, key: str, target: Any) -> None:
        self.key, self.target = key, target

    def capture(self) -> Any:
        return self.target.state_dict()

    def restore(self, tree: Any) -> List[str]:
        live = self.capture()
        if tree or live:  # a disabled GradScaler has {} and refuses to load it
            try:
                self.target.load_state_dict(fit(tree, live))
            except CheckpointError:
                raise
            except Exception as error:
                raise CheckpointError(
                    "%s refuses the state that was saved: the load_state_dict() of its %s raised %s: %s."
                    % (self.key, type(self.target).__name__, type(error).__name__, str(error).rstrip(".")),
                    "Register the same object as when it was saved, or give this run another checkpoint directory.",
                ) from error
        return []

    def capture_small(self) -> Any:
        return copy.deepcopy(self.capture())

    def restore_small(self, tree: Any) -> None:
        self.restore(copy.deepcopy(tree))
