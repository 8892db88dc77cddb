"""The registered objects: how the state of each kind is taken and put back.

Every part has `capture()` and `restore(tree)`. A *heavy* part (weights, moments) is never copied; of what is small
and likes to be touched by the code around a training loop (schedulers, counters, metrics, learning rates),
`capture_small()` keeps a copy where an evaluation begins, and `restore_small(tree)` puts it back once more after the
first lines of a resumed epoch have run. Both small ones speak of entries of the same tree.
Must not import torch before the script does, nor store anything but tensors and plain values.
"""

import copy
import random
from typing import Any, Dict, List

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.state import metrics, randomness
from gpusched.checkpoint.state.names import clean_names, parameter_names

_ANOTHER = "Is it a checkpoint of another model? Give this run a checkpoint directory of its own."


class StatefulPart:
    """Anything with state_dict() and load_state_dict(): schedulers, scalers, the user's own objects."""

    heavy = False

    def __init__(self, key: str, target: Any) -> None:
        self.key, self.target = key, target

    def capture(self) -> Any:
        return self.target.state_dict()

    def restore(self, tree: Any) -> None:
        if tree or self.capture():  # a disabled GradScaler has {} and refuses to load it
            self.target.load_state_dict(tree)

    def capture_small(self) -> Any:
        return copy.deepcopy(self.capture())

    def restore_small(self, tree: Any) -> None:
        self.restore(copy.deepcopy(tree))


class ModulePart(StatefulPart):
    """A torch module: parameters and buffers by name, without wrappers' prefixes."""

    heavy = True

    def capture(self) -> Any:
        state = self.target.state_dict()
        cleaned = clean_names(self.target, list(state))
        return {cleaned[name]: value for name, value in state.items()}

    def restore(self, tree: Any) -> None:
        live = self.target.state_dict()
        cleaned = clean_names(self.target, list(live))
        self._compare({cleaned[name]: value for name, value in live.items()}, tree)
        self.target.load_state_dict({name: tree[cleaned[name]] for name in live})

    def _compare(self, live: Dict[str, Any], saved: Dict[str, Any]) -> None:
        for name in live:
            if name not in saved:
                raise CheckpointError("%s has %s, which the checkpoint has not." % (self.key, name), _ANOTHER)
        for name, value in saved.items():
            if name not in live:
                raise CheckpointError("The checkpoint has %s, which %s has not." % (name, self.key), _ANOTHER)
            for aspect in ("shape", "dtype"):
                here, there = getattr(live[name], aspect, None), getattr(value, aspect, None)
                if here != there:
                    text = "%s of %s is %s in the checkpoint and %s in the script."
                    raise CheckpointError(text % (aspect, name, _show(there), _show(here)), _ANOTHER)

    def capture_small(self) -> Any:
        return {}

    def restore_small(self, tree: Any) -> None:
        pass

    def version(self) -> int:
        """A number that grows whenever a parameter or buffer is written to."""
        tensors = list(self.target.parameters()) + list(self.target.buffers())
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())


class OptimizerPart(StatefulPart):
    """A torch optimizer: state by parameter *name*, in its own dtype, and the options of every group.

    Optimizer.load_state_dict goes by position, gives one parameter's moments to another when the order changed, and
    casts fp32 moments of bf16 parameters down; all of which is avoided here.
    """

    heavy = True

    def __init__(self, key: str, target: Any, modules: Dict[str, Any]) -> None:
        super().__init__(key, target)
        self._modules = modules

    def _names(self) -> List[List[str]]:
        known = parameter_names(self._modules)
        groups = self.target.param_groups
        return [
            [known.get(id(one), "group %d, parameter %d" % (g, i)) for i, one in enumerate(group["params"])]
            for g, group in enumerate(groups)
        ]

    def capture(self) -> Any:
        state = self.target.state_dict()
        flat = [name for group in self._names() for name in group]
        return {
            "state": {flat[index]: value for index, value in state["state"].items()},
            "groups": self._options(),
        }

    def _options(self) -> List[Dict[str, Any]]:
        return [
            {"names": names, "options": {key: value for key, value in group.items() if key != "params"}}
            for names, group in zip(self._names(), self.target.param_groups)  # noqa: B905 - Python 3.9
        ]

    def restore(self, tree: Any) -> None:
        names = self._names()
        options = [self._find(group, tree["groups"])["options"] for group in names]
        flat = [name for group in names for name in group]
        position = {name: index for index, name in enumerate(flat)}
        numbers = [[position[name] for name in group] for group in names]
        groups = [
            dict(option, params=group)
            for option, group in zip(options, numbers)  # noqa: B905
        ]
        state = {position[name]: value for name, value in tree["state"].items()}
        self.target.load_state_dict({"state": state, "param_groups": groups})
        self._keep_dtypes(flat, tree["state"])

    def _find(self, names: List[str], groups: List[Dict[str, Any]]) -> Dict[str, Any]:
        for group in groups:
            if set(group["names"]) == set(names):
                return group
        saved = {name for group in groups for name in group["names"]}
        odd = next((name for name in names if name not in saved), None)
        if odd is not None:
            raise CheckpointError("%s holds %s, which the checkpoint's has not." % (self.key, odd), _ANOTHER)
        raise CheckpointError(
            "%s has its parameters in other groups than the checkpoint (first: the group of %s)."
            % (self.key, names[0] if names else "no parameter"),
            "Build the optimizer with the same groups as when it was saved.",
        )

    def _keep_dtypes(self, flat: List[str], saved: Dict[str, Any]) -> None:
        parameters = [one for group in self.target.param_groups for one in group["params"]]
        for name, parameter in zip(flat, parameters):  # noqa: B905
            live = self.target.state.get(parameter, {})
            for key, value in saved.get(name, {}).items():
                now = live.get(key)
                if getattr(now, "dtype", None) != getattr(value, "dtype", None) and hasattr(now, "device"):
                    live[key] = value.to(now.device, copy=True)

    def capture_small(self) -> Any:
        return {"groups": copy.deepcopy(self._options())}

    def restore_small(self, tree: Any) -> None:
        for names, group in zip(self._names(), self.target.param_groups):  # noqa: B905
            group.update(copy.deepcopy(self._find(names, tree["groups"])["options"]))


class MetricPart(StatefulPart):
    """torchmetrics: its state_dict is empty by default, and without its update counts a mean comes out wrong."""

    def capture(self) -> Any:
        return metrics.capture(self.target)

    def restore(self, tree: Any) -> None:
        metrics.restore(self.target, tree)


class GeneratorPart(StatefulPart):
    """An explicit generator: random.Random, numpy.random.Generator or RandomState, torch.Generator."""

    def capture(self) -> Any:
        return randomness.generator_state(self.target)

    def restore(self, tree: Any) -> None:
        randomness.set_generator_state(self.target, tree)


class PlainPart(StatefulPart):
    """A list or dictionary of plain values, filled in place so that the script's own name for it stays right."""

    def capture(self) -> Any:
        return self.target

    def restore(self, tree: Any) -> None:
        if isinstance(self.target, list):
            self.target[:] = tree
        else:
            self.target.clear()
            self.target.update(tree)


def make_part(key: str, target: Any, modules: Dict[str, Any]) -> Any:
    """The part for an object. Raises CheckpointError for one whose state cannot be taken."""
    if randomness.is_generator(target) or isinstance(target, random.Random):
        return GeneratorPart(key, target)
    if metrics.is_metric(target):
        return MetricPart(key, target)
    if hasattr(target, "named_parameters") and hasattr(target, "state_dict"):
        return ModulePart(key, target)
    if hasattr(target, "param_groups") and hasattr(target, "state_dict"):
        return OptimizerPart(key, target, modules)
    if hasattr(target, "state_dict") and hasattr(target, "load_state_dict"):
        return StatefulPart(key, target)
    if type(target) in (list, dict):
        return PlainPart(key, target)
    raise CheckpointError(
        "%s is a %s without state_dict() and load_state_dict(), so its state cannot be saved."
        % (key, type(target).__name__),
        "Give it those two methods, put plain values into run.values, or leave it out.",
    )


def _show(value: Any) -> str:
    return "absent" if value is None else str(tuple(value) if isinstance(value, tuple) else value)
