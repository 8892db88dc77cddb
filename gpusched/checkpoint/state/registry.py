"""Everything that a script registered, in the order in which it is restored.

The order is part of correctness: models before optimizers before schedulers (all are built by then, so that no
constructor overwrites a learning rate that was loaded), then the rest. Must not touch files.
"""

import copy
from typing import Any, Callable, Dict, List, Tuple

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.state.parts import ModulePart, OptimizerPart, make_part

_ROLES = ["model", "optimizer", "scheduler", "scaler", "ema", "metrics", "extra", "generators"]
_OWN = ("metrics", "extra", "generators")  # of one rank; the others are equal on all of them
_NEEDED = ("model", "optimizer")  # a run without the others' state is inexact, without these it is another run


class Registry:
    """The parts of a run by key: "model", or "model.generator" where a dictionary was given."""

    def __init__(self, given: Dict[str, Any]) -> None:
        models = _named("", given.get("model"))
        self.modules = {name: one for name, one in models.items() if hasattr(one, "named_parameters")}
        self._parts: Dict[str, Any] = {}
        for role in _ROLES:
            for key, target in _named(role, given.get(role)).items():
                part = make_part(key, target, self.modules)
                part.heavy = part.heavy or role == "ema"
                self._parts[key] = part

    @property
    def targets(self) -> List[Any]:
        """Everything that was registered."""
        return [part.target for part in self._parts.values()]

    @property
    def optimizers(self) -> List[Any]:
        return [part.target for part in self._parts.values() if isinstance(part, OptimizerPart)]

    @staticmethod
    def split(trees: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """(what is equal on all ranks, what belongs to this one)."""
        own = {key: tree for key, tree in trees.items() if key.split(".")[0] in _OWN}
        return {key: tree for key, tree in trees.items() if key not in own}, own

    def capture(self, small: Any = None) -> Dict[str, Any]:
        """The state of all parts now; with `small` (from capture_small) the small state of that earlier moment."""
        if small is None:
            return {key: part.capture() for key, part in self._parts.items()}
        return {
            key: _with_small(part.capture(), small.get(key, {})) if part.heavy else small[key]
            for key, part in self._parts.items()
        }

    def capture_small(self) -> Dict[str, Any]:
        """Copies of all that is small."""
        return {key: {} if _opaque(part) else part.capture_small() for key, part in self._parts.items()}

    def restore(self, trees: Dict[str, Any], tell: Callable[[str], None]) -> None:
        """Put everything back. Raises CheckpointError, naming the first mismatch, if the script is another one."""
        for key in list(self._parts) + list(trees):
            if (key in self._parts) != (key in trees):
                self._mismatch(key, key in trees, tell)
        for key, part in self._parts.items():
            if key in trees:
                for note in part.restore(trees[key] if part.heavy else copy.deepcopy(trees[key])):
                    tell(note)

    def restore_small(self, trees: Dict[str, Any]) -> None:
        for key, part in self._parts.items():
            if key in trees and not _opaque(part):
                part.restore_small(trees[key])

    def training(self) -> bool:
        """Whether a registered model is in training mode; true where that cannot be told."""
        flags = [one.training for one in self.modules.values() if hasattr(one, "training")]
        return any(flags) or not flags

    def version(self) -> int:
        """Grows whenever weights are written to."""
        return sum(part.version() for part in self._parts.values() if isinstance(part, ModulePart))

    def _mismatch(self, key: str, saved: bool, tell: Callable[[str], None]) -> None:
        ours = "the script registers %s, which the checkpoint does not have"
        theirs = "the checkpoint has %s, which the script does not register"
        text = (theirs if saved else ours) % key
        if key.split(".")[0] in _NEEDED:
            hint = "Register the same objects as when it was saved, or give this run a checkpoint directory of its own."
            raise CheckpointError(text[0].upper() + text[1:] + ".", hint)
        tell(text + "; it starts as the script made it, so the run is not exact")


def _with_small(tree: Any, small: Any) -> Any:
    """A heavy part's state with the small entries of an earlier moment; None is an entry that was not there then."""
    merged = dict(tree, **small)
    return {name: value for name, value in merged.items() if value is not None or name not in small}


def _opaque(part: Any) -> bool:
    """A heavy object that cannot be told apart into small and large state."""
    return bool(part.heavy) and type(part).heavy is False


def _named(role: str, given: Any) -> Dict[str, Any]:
    """One object, a list or a dictionary of them, as key → object."""
    if given is None:
        return {}
    dotted = role + "." if role else ""
    if type(given) is dict:
        return {dotted + str(name): target for name, target in given.items() if target is not None}
    if role == "extra":
        raise CheckpointError("extra is a %s." % type(given).__name__, 'Give a dictionary: extra={"name": object}.')
    if type(given) in (list, tuple):
        return {"%s%d" % (dotted, index): target for index, target in enumerate(given)}
    return {role: given}

