"""What a training script holds and has not registered: it would start afresh after a resume, silently.

Looked for in the variables of the function that calls run.epochs(), in the global ones of its file, and in the
attributes of what is registered: generators, optimizers, schedulers, scalers, averaged models, metrics. By what an
object is, not by its name. Must not import torch, and must not run code of the objects it looks at.
"""

import sys
from types import ModuleType
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

from gpusched.checkpoint.state import metrics, randomness

_MOST = 4000  # variables looked at: a notebook may hold many


class Unregistered:
    """What one run has not registered. A generator only counts once it was drawn from while the run was on: many only
    make the data.
    """

    def __init__(self, frame: Any, registered: Iterable[Any], ignore: Sequence[Any] = ()) -> None:
        self._found = objects(frame, registered, ignore)
        self._states = [repr(_state(value)) if kind == "generator" else None for _, value, kind in self._found]

    def sentences(self) -> List[str]:
        """One for each object, the same one each time it is asked."""
        return [
            _sentence(*found)
            for found, state in zip(self._found, self._states)  # noqa: B905 - Python 3.9
            if state is None or repr(_state(found[1])) != state
        ]


def _state(generator: Any) -> Any:
    state = randomness.generator_state(generator)
    return state.tolist() if hasattr(state, "tolist") else state


def _sentence(name: str, value: Any, kind: str) -> str:
    text = "%s (%s, %s) is not registered, so it starts afresh after a stop: %s"
    todo = "add it to Run(...), or to ignore=[...] if that is right"
    return text % (name, type(value).__name__, with_article(kind), todo)


def with_article(word: str) -> str:
    """a generator, an optimizer"""
    return ("an " if word[:1].lower() in "aeio" else "a ") + word


def objects(frame: Any, registered: Iterable[Any], ignore: Sequence[Any] = ()) -> List[Tuple[str, Any, str]]:
    """(name, object, kind) of what has state and is not registered."""
    known = {id(one) for one in registered} | {id(one) for one in ignore}
    members = _members(known, registered)
    candidates = list(_candidates(frame, registered))
    for _, value in candidates:
        if _is_loader(value):  # a loader's own generators get a seed for every epoch
            members |= {id(one) for one in randomness.generators_in(value)}
    found: Dict[int, Tuple[str, Any, str]] = {}
    for name, value in candidates:
        kind = _kind(value)
        if kind and id(value) not in known and id(value) not in members and id(value) not in found:
            found[id(value)] = (name, value, kind)
    return list(found.values())


def _members(known: "set[int]", registered: Iterable[Any]) -> "set[int]":
    """Objects that are saved as a part of a registered one: a metric of a collection, a generator in a sampler."""
    inside = set()
    for one in registered:
        modules = getattr(one, "modules", None)
        if callable(modules) and hasattr(one, "named_parameters"):
            inside |= {id(module) for module in modules()}
        inside |= {id(value) for value in getattr(one, "__dict__", {}).values() if _kind(value) == "metric"}
        for value in getattr(one, "_schedulers", None) or []:  # SequentialLR, ChainedScheduler
            inside.add(id(value))
        if isinstance(one, dict):
            inside |= {id(value) for value in one.values()}
        elif isinstance(one, (list, tuple)):
            inside |= {id(value) for value in one}
    return inside - known


def _candidates(frame: Any, registered: Iterable[Any]) -> Iterator[Tuple[str, Any]]:
    spaces = [frame.f_locals]
    if frame.f_globals is not frame.f_locals:
        spaces.append(frame.f_globals)
    count = 0
    for space in spaces:
        for name, value in list(space.items()):
            count += 1
            if count > _MOST:
                return
            yield name, value
            if isinstance(value, (list, tuple)) and len(value) <= 16:
                for index, item in enumerate(value):
                    yield "%s[%d]" % (name, index), item
            elif type(value) is dict and len(value) <= 16 and not name.startswith("__"):
                for key, item in list(value.items()):
                    yield "%s[%r]" % (name, key), item
            else:
                yield from _attributes(name, value)
    for one in registered:
        yield from _attributes(type(one).__name__, one)


def _attributes(owner: str, value: Any) -> Iterator[Tuple[str, Any]]:
    """One level deep, and not into modules, classes, loaders (their randomness has its own rules) or big things."""
    if isinstance(value, type) or type(value).__module__ in ("builtins", "torch", "numpy") or _is_loader(value):
        return
    attributes = None if isinstance(value, ModuleType) else getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and len(attributes) <= 200:
        for name, item in list(attributes.items()):
            yield "%s.%s" % (owner, name), item


def _is_loader(value: Any) -> bool:
    data = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(value, (data.DataLoader, data.Dataset, data.Sampler))


def _kind(value: Any) -> str:
    """What kind of thing with state this is; empty for anything else."""
    if isinstance(value, type):
        return ""
    if randomness.is_generator(value):
        return "" if _is_global(value) else "generator"
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler) or _named(value, "ReduceLROnPlateau"):
        return "learning-rate scheduler"
    if _named(value, "GradScaler") and hasattr(value, "state_dict"):
        return "gradient scaler"
    if _named(value, "AveragedModel"):
        return "averaged model"
    if hasattr(type(value), "named_modules") and metrics.is_metric(value):  # not asked of what may answer by itself
        return "metric"
    return ""


def _named(value: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(value).__mro__)


def _is_global(value: Any) -> bool:
    """The generators of the modules themselves, which are always saved."""
    import random

    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if value is getattr(random, "_inst", None):
        return True
    if torch is not None and value is torch.default_generator:
        return True
    return numpy is not None and value is numpy.random.mtrand._rand
