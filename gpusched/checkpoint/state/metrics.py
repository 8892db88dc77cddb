"""torchmetrics' states: what their state_dict leaves out, without importing torchmetrics.

By default a Metric stores nothing in its state_dict, and after loading its `_update_count` is 0, which makes averaged
metrics wrong. Here every Metric inside the object gives its states, that count, and the plain attributes that have
moved since the run began (the extremes of a MinMaxMetric, a counter of a class of the user's own). A collection also
gives its compute groups, whose members share one state; a tracker its number of steps.
"""

from typing import Any, Dict, Iterator, List, Optional, Tuple

Tree = Dict[str, Any]
_COUNTERS = ("_num_vals_seen",)  # private attributes of torchmetrics that are state
_PLAIN = (bool, int, float, str)


def is_metric(target: Any) -> bool:
    """A Metric, MetricCollection or MetricTracker; not a model that has metrics inside."""
    return hasattr(target, "named_modules") and (
        hasattr(target, "_defaults") or hasattr(target, "add_metrics") or _is_tracker(target)
    )


def moving(target: Any) -> Dict[str, Tree]:
    """The plain attributes of all metrics inside, to see later which of them have moved."""
    return {path: _plain(metric) for path, metric in _metrics(target)}


def capture(target: Any, at_first: Optional[Dict[str, Tree]] = None) -> Tree:
    """All states now; `at_first` is what moving() gave when the run began (else every tensor counts as moved)."""
    modules = list(target.named_modules())
    for _, one in modules:
        if _is_collection(one):
            list(one.items(copy_state=False))  # only one member of a group is updated; this gives it to the others
    tree: Tree = {path: _one(metric, (at_first or {}).get(path)) for path, metric in _metrics(target)}
    for path, one in modules:
        if _is_collection(one) and one._groups_checked:
            tree.setdefault(path, {})["groups"] = [list(names) for names in one._groups.values()]
        if _is_tracker(one):
            tree.setdefault(path, {})["steps"] = one.n_steps
    return tree


def _one(metric: Any, at_first: Optional[Tree]) -> Tree:
    tree = {
        "states": {name: _copied(getattr(metric, name)) for name in metric._defaults},
        "count": metric._update_count,
    }
    plain = _plain(metric)
    if at_first is None:
        moved = {key: value for key, value in plain.items() if key in _COUNTERS or hasattr(value, "detach")}
    else:
        moved = {key: value for key, value in plain.items() if key not in at_first or _differ(value, at_first[key])}
    return dict(tree, moved=moved) if moved else tree


def restore(target: Any, tree: Tree) -> List[str]:
    """Put the states back. Returns a sentence for every metric that the checkpoint does not have."""
    for path, one in list(target.named_modules()):
        if _is_tracker(one):
            _repeat_steps(one, tree.get(path, {}).get("steps", 0))
    notes = []
    for path, metric in _metrics(target):
        saved = tree.get(path, {})
        if set(saved.get("states", {})) != set(metric._defaults):
            text = "the checkpoint has no state for the metric %s (%s): it starts from nothing, so it is not exact"
            notes.append(text % (path or "that is registered", type(metric).__name__))
            continue
        for name in metric._defaults:
            on_cpu = getattr(metric, "compute_on_cpu", False) and isinstance(saved["states"][name], list)
            setattr(metric, name, _moved(saved["states"][name], "cpu" if on_cpu else metric.device))
        for name, value in saved.get("moved", {}).items():
            setattr(metric, name, _moved(value, metric.device) if hasattr(value, "to") else value)
        metric._update_count = saved["count"]
        metric._computed = None
    for path, one in target.named_modules():
        if _is_collection(one):
            _restore_groups(one, tree.get(path, {}).get("groups"))
    return notes


def _repeat_steps(tracker: Any, steps: int) -> None:
    while tracker.n_steps > steps:
        del tracker[len(tracker) - 1]
    while tracker.n_steps < steps:
        tracker.increment()


def _restore_groups(collection: Any, groups: Any) -> None:
    """The first update of a collection decides who shares a state; that is not decided again."""
    if groups is None:
        collection._groups_checked = False
        collection._init_compute_groups()
    elif sorted(name for names in groups for name in names) == sorted(collection.keys(keep_base=True)):
        collection._groups = dict(enumerate(groups))
        collection._groups_checked, collection._state_is_copy = True, False
        list(collection.items(copy_state=False))


def _is_collection(module: Any) -> bool:
    return hasattr(module, "_groups_checked") and hasattr(module, "_init_compute_groups")


def _is_tracker(module: Any) -> bool:
    return hasattr(module, "increment") and hasattr(module, "_base_metric") and hasattr(module, "n_steps")


def _metrics(target: Any) -> Iterator[Tuple[str, Any]]:
    for path, module in target.named_modules():
        if hasattr(module, "_defaults") and hasattr(module, "_update_count"):
            yield path, module


def _plain(metric: Any) -> Tree:
    """Numbers, strings and tensors that are attributes and no states."""
    return {
        name: _copied(value) if hasattr(value, "detach") else value
        for name, value in vars(metric).items()
        if (not name.startswith("_") or name in _COUNTERS)
        and name not in metric._defaults
        and name not in ("training", "is_differentiable")
        and (type(value) in _PLAIN or hasattr(value, "detach"))
    }


def _differ(one: Any, other: Any) -> bool:
    if hasattr(one, "detach") and hasattr(other, "detach"):
        return one.shape != other.shape or one.dtype != other.dtype or not bool((one.cpu() == other.cpu()).all())
    return type(one) is not type(other) or bool(one != other)


def _copied(value: Any) -> Any:
    return [one.detach().clone() for one in value] if isinstance(value, list) else value.detach().clone()


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device, copy=True)
