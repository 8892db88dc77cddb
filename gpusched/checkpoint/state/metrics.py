"""torchmetrics' states: what their state_dict leaves out, without importing torchmetrics.

By default a Metric stores nothing in its state_dict, and after loading its `_update_count` is 0, which makes averaged
metrics wrong. Here every Metric inside the object gives its states and that count.
"""

from typing import Any, Dict, Iterator, Tuple


def is_metric(target: Any) -> bool:
    """A torchmetrics Metric or MetricCollection; not a model that has metrics inside."""
    return hasattr(target, "named_modules") and (hasattr(target, "_defaults") or hasattr(target, "add_metrics"))


def capture(target: Any) -> Dict[str, Any]:
    if hasattr(target, "compute_groups"):
        list(target.items())  # a collection's compute groups update one member only; this gives the others its state
    return {
        path: {
            "states": {name: _copied(getattr(metric, name)) for name in metric._defaults},
            "count": metric._update_count,
        }
        for path, metric in _metrics(target)
    }


def restore(target: Any, tree: Dict[str, Any]) -> None:
    for path, metric in _metrics(target):
        saved = tree[path]
        for name in metric._defaults:
            setattr(metric, name, _moved(saved["states"][name], metric.device))
        metric._update_count = saved["count"]
        metric._computed = None


def _metrics(target: Any) -> Iterator[Tuple[str, Any]]:
    for path, module in target.named_modules():
        if hasattr(module, "_defaults") and hasattr(module, "_update_count"):
            yield path, module


def _copied(value: Any) -> Any:
    return [one.detach().clone() for one in value] if isinstance(value, list) else value.detach().clone()


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device, copy=True)
