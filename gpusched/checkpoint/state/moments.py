"""The part of a registered optimizer: state by the *name* of its parameter, in its own dtype, and all groups' options.

Optimizer.load_state_dict goes by position, gives one parameter's moments to another when the order has changed, and
casts fp32 moments of bf16 parameters down; all of which is avoided here. A fresh optimizer has no state yet: each
tensor is laid out like its parameter, so what was saved by FSDP2 loads into a plain run, and the other way round.

Options (learning rate, weight decay…) are the checkpoint's, because a resumed run should end like one that was not
stopped. Where the script itself has been changed, that is told: a checkpoint also holds the options with which the
script once began. A learning rate's is the one before any scheduler (`initial_lr`).
"""

import copy
import weakref
from typing import Any, Dict, List, Optional, Tuple

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import Sharded, fit, laid_out
from gpusched.checkpoint.state.names import parameter_names
from gpusched.checkpoint.state.stateful import StatefulPart
from gpusched.checkpoint.state.weights import ANOTHER

Tree = Dict[str, Any]


_NAMED = ("params", "param_names")  # what a group holds beside its options


class OptimizerPart(StatefulPart):
    """A torch optimizer. Its parameters are named by the registered models that hold them."""

    heavy = True

    def __init__(self, key: str, target: Any, modules: Dict[str, Any]) -> None:
        super().__init__(key, target)
        self._modules = modules
        self._known: Dict[int, Tuple[Any, str]] = {}  # id(parameter) → (weak reference to it, name)
        self._began_with = [dict(one, options=_as_written(one["options"])) for one in self._options()]

    # names

    def _parameters(self) -> List[Any]:
        return [one for group in self.target.param_groups for one in group["params"]]

    def _names(self) -> List[List[str]]:
        """The parameters' names, by group. They are remembered: while FSDP2 has parameters gathered, it hides them."""
        if any(self._remembered(one) is None for one in self._parameters()):
            names = parameter_names(self._modules)
            for g, group in enumerate(self.target.param_groups):
                for i, one in enumerate(group["params"]):
                    name = self._remembered(one) or names.get(id(one), "group %d, parameter %d" % (g, i))
                    self._known[id(one)] = (weakref.ref(one), name)
        return [[self._known[id(one)][1] for one in group["params"]] for group in self.target.param_groups]

    def _remembered(self, parameter: Any) -> Optional[str]:
        reference, name = self._known.get(id(parameter), (None, ""))
        return name if reference is not None and reference() is parameter else None

    def _options(self) -> List[Tree]:
        return [
            {"names": names, "options": {key: value for key, value in group.items() if key not in _NAMED}}
            for names, group in zip(self._names(), self.target.param_groups)  # noqa: B905 - Python 3.9
        ]

    # taking

    def capture(self) -> Any:
        state = self.target.state_dict()
        flat = [name for group in self._names() for name in group]
        by_name = {flat[key]: value for key, value in state["state"].items() if type(key) is int}
        rest = {key: value for key, value in state["state"].items() if type(key) is not int}
        more = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        tree = {"state": by_name, "groups": self._options(), "began with": self._began_with}
        return dict(tree, **{key: value for key, value in (("rest", rest), ("more", more)) if value})

    def capture_small(self) -> Any:
        return {"groups": copy.deepcopy(self._options())}

    # putting back

    def restore(self, tree: Any) -> List[str]:
        notes = self._add_groups(tree["groups"]) + self._script_changes(tree.get("began with", []))
        names = self._names()
        options = [self._find(group, tree["groups"])["options"] for group in names]
        flat = [name for group in names for name in group]
        position = {name: index for index, name in enumerate(flat)}
        groups = [
            dict(fit(option), params=[position[name] for name in group])
            for option, group in zip(options, names)  # noqa: B905
        ]
        state: Dict[Any, Any] = dict(tree.get("rest", {}))
        parameters = self._parameters()
        for name, saved in tree["state"].items():
            if name not in position:
                raise CheckpointError(
                    "The checkpoint's %s holds %s, which this one has not." % (self.key, name), ANOTHER
                )
            parameter = parameters[position[name]]
            live = self.target.state.get(parameter, {})
            state[position[name]] = _placed(saved, live, parameter)
        self.target.load_state_dict(dict(tree.get("more", {}), state=state, param_groups=groups))
        for index, parameter in enumerate(parameters):
            if index in state:
                _keep_dtypes(self.target.state[parameter], state[index])
        self._began_with = copy.deepcopy(tree.get("began with", self._began_with))
        return notes

    def restore_small(self, tree: Any) -> None:
        for names, group in zip(self._names(), self.target.param_groups):  # noqa: B905
            group.update(copy.deepcopy(fit(self._find(names, tree["groups"])["options"])))

    def _find(self, names: List[str], groups: List[Tree]) -> Tree:
        for group in groups:
            if set(group["names"]) == set(names):
                return group
        saved = {name for group in groups for name in group["names"]}
        odd = next((name for name in names if name not in saved), None)
        if odd is not None:
            raise CheckpointError("%s holds %s, which the checkpoint's has not." % (self.key, odd), ANOTHER)
        raise CheckpointError(
            "%s has its parameters in other groups than the checkpoint (first: the group of %s)."
            % (self.key, names[0] if names else "no parameter"),
            "Build the optimizer with the same groups as when it was saved.",
        )

    def _add_groups(self, groups: List[Tree]) -> List[str]:
        """Groups that were added during the run (a layer was unfrozen) are added again, from the models' parameters."""
        notes = []
        here = {name for group in self._names() for name in group}
        names = parameter_names(self._modules)
        found = {
            names[id(one)]: one for module in self._modules.values() for one in module.parameters() if id(one) in names
        }
        for group in groups:
            if group["names"] and not here & set(group["names"]) and all(name in found for name in group["names"]):
                named = "param_names" in self.target.param_groups[0]
                added = [(name, found[name]) if named else found[name] for name in group["names"]]
                self.target.add_param_group({"params": added})
                text = "%s got the group of %s during the run: it is there again, do not add it twice"
                notes.append(text % (self.key, group["names"][0]))
        return notes

    def _script_changes(self, began_with: List[Tree]) -> List[str]:
        """A sentence for every option that the script gives another value than when the run began."""
        then = {frozenset(group["names"]): group["options"] for group in began_with}
        notes = []
        for group in self._began_with:
            for option, was in then.get(frozenset(group["names"]), {}).items():
                now = group["options"].get(option, was)
                if not _equal(was, now):
                    notes.append(
                        "the script now begins with %s=%s in %s, and began with %s: the run goes on with the "
                        "checkpoint's values; set it inside the loop over epochs, or begin in another directory"
                        % (option, _show(now), self.key, _show(was))
                    )
        return list(dict.fromkeys(notes))


def _as_written(options: Tree) -> Tree:
    """Options as the script gave them, without what schedulers keep there and move."""
    moved = {"lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
    if "max_momentum" in options:
        moved |= {"momentum", "betas"}
    given = {key: value for key, value in options.items() if key not in moved}
    if "lr" in options:
        given["lr"] = options.get("initial_lr", options["lr"])
    return copy.deepcopy(given)


def _placed(value: Any, live: Any, parameter: Any) -> Any:
    """A loaded piece of a parameter's state: like the live one, like the parameter, or as it was saved."""
    if type(value) is dict:
        known = live if isinstance(live, dict) else {}
        return {key: _placed(item, known.get(key), parameter) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_placed(item, None, parameter) for item in value)
    shape = getattr(value, "shape", None)
    if shape is None:
        return value
    for one in (live, parameter):
        if getattr(one, "shape", None) is not None and tuple(one.shape) == tuple(shape) and len(shape):
            return fit(value, one)
    return laid_out(value, parameter)


def _keep_dtypes(live: Any, saved: Any) -> Any:
    """Undo the cast to the parameter's dtype; returns what belongs in the place of `live`."""
    if isinstance(live, dict) and isinstance(saved, dict):
        for key, value in saved.items():
            if key in live:
                live[key] = _keep_dtypes(live[key], value)
    elif type(live) in (list, tuple) and type(saved) in (list, tuple) and len(live) == len(saved):
        return type(live)(_keep_dtypes(one, value) for one, value in zip(live, saved))  # noqa: B905
    elif hasattr(live, "device") and getattr(saved, "dtype", None) not in (None, getattr(live, "dtype", None)):
        return saved.to(live.device, copy=True)
    return live


def _equal(one: Any, other: Any) -> bool:
    one, other = _number(one), _number(other)
    return bool(type(one) is type(other) or isinstance(one, (int, float))) and bool(one == other)


def _number(value: Any) -> Any:
    """Tensors (the learning rate of a capturable optimizer) as lists; tuples like lists."""
    if isinstance(value, Sharded):
        value = value.whole()
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    return str(_number(value))
