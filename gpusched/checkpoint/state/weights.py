"""The part of a registered module: its parameters and buffers by name, and its flags (flags.py).

A checkpoint is refused as that of another model before anything has been changed. Values that lie on several ranks
(FSDP2's DTensors) are captured as they are; loading takes whole tensors and pieces alike, for any layout.
"""

from typing import Any, Dict, List

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import fit, is_sharded
from gpusched.checkpoint.state import flags
from gpusched.checkpoint.state.names import clean_names
from gpusched.checkpoint.state.stateful import StatefulPart

ANOTHER = "Is it a checkpoint of another model? Give this run a checkpoint directory of its own."


class ModulePart(StatefulPart):
    """A torch module: parameters and buffers by name, without wrappers' prefixes."""

    heavy = True

    def __init__(self, key: str, target: Any) -> None:
        super().__init__(key, target)
        parameters = list(target.parameters())
        # After a forward pass without a backward one FSDP2's module has other parameters (the gathered ones) for a
        # while. What the optimizer works on are these.
        self._sharded = parameters if any(is_sharded(one) for one in parameters) else None
        self._frozen_at_first = flags.frozen(target)

    def capture(self) -> Any:
        state = self.target.state_dict()
        self._refuse_lazy(state)
        cleaned = clean_names(self.target, list(state))
        tree = {cleaned[name]: value for name, value in state.items()}
        now = flags.capture(self.target, self._frozen_at_first)
        if flags.worth_storing(now):
            tree[flags.KEY] = now
        return tree

    def restore(self, tree: Any) -> List[str]:
        saved = {name: value for name, value in tree.items() if name != flags.KEY}
        live = self.target.state_dict()
        cleaned = clean_names(self.target, list(live))
        self._compare({cleaned[name]: value for name, value in live.items()}, saved)
        self.target.load_state_dict({name: fit(saved[cleaned[name]], value) for name, value in live.items()})
        return self._restore_flags(tree)

    def _restore_flags(self, tree: Any) -> List[str]:
        if flags.KEY not in tree:
            return []
        notes, then = [], tree[flags.KEY]["frozen at first"]
        changed = sorted(set(then) ^ set(self._frozen_at_first))
        if changed:
            text = "the script now %s %s of %s, which it did not when this run began; the checkpoint's choice goes on"
            notes.append(text % ("trains" if changed[0] in then else "freezes", changed[0], self.key))
        self._frozen_at_first = then
        flags.restore(self.target, tree[flags.KEY])
        return notes

    def _compare(self, live: Dict[str, Any], saved: Dict[str, Any]) -> None:
        for name in live:
            if name not in saved:
                hint = _PRUNED if name + "_orig" in saved else ANOTHER
                raise CheckpointError("%s has %s, which the checkpoint has not." % (self.key, name), hint)
        for name, value in saved.items():
            if name not in live:
                raise CheckpointError("The checkpoint has %s, which %s has not." % (name, self.key), ANOTHER)
            if name.split(".")[-1] == "_extra_state" or _is_lazy(live[name]):
                continue  # the module's own business: its set_extra_state() takes what it gave
            if getattr(live[name], "is_meta", False):
                text = "%s of %s is on the meta device: it has no memory to load values into."
                raise CheckpointError(text % (name, self.key), "Call %s.to_empty(device=...) before Run." % self.key)
            for aspect in ("shape", "dtype"):
                here, there = getattr(live[name], aspect, None), getattr(value, aspect, None)
                if here != there:
                    text = "%s of %s is %s in the checkpoint and %s in the script."
                    raise CheckpointError(text % (aspect, name, _show(there), _show(here)), ANOTHER)

    def _refuse_lazy(self, state: Dict[str, Any]) -> None:
        lazy = next((name for name, value in state.items() if _is_lazy(value)), None)
        if lazy is not None:
            raise CheckpointError(
                "%s of %s has no shape yet: its layer waits for the first batch." % (lazy, self.key),
                "Pass one batch through the model before Run(...) and before the optimizer is made.",
            )

    def capture_small(self) -> Any:
        now = flags.capture(self.target, self._frozen_at_first)
        return {flags.KEY: now if flags.worth_storing(now) else None}  # None: nothing of it at this moment

    def restore_small(self, tree: Any) -> None:
        if flags.KEY in tree:
            flags.restore(self.target, tree[flags.KEY])

    def version(self) -> int:
        """A number that grows whenever a parameter or buffer is written to."""
        parameters = self._sharded if self._sharded is not None else list(self.target.parameters())
        tensors = parameters + list(self.target.buffers())
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())


_PRUNED = (
    "Its layer was pruned when this was saved: prune it before Run(...), too; torch.nn.utils.prune.identity() does."
)


def _is_lazy(value: Any) -> bool:
    return any(base.__name__ == "UninitializedTensorMixin" for base in type(value).__mro__)


def _show(value: Any) -> str:
    return "absent" if value is None else str(tuple(value) if isinstance(value, tuple) else value)
