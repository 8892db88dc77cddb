"""Gradients in the middle of an accumulation window, by the name of their parameter.

Only saved at run.micro_step(), where they hold work that the next optimizer step needs. Must not touch parameters.
"""

from typing import Any, Dict, Iterable, List, Tuple

from gpusched.checkpoint.state.names import parameter_names


def capture(modules: Dict[str, Any], optimizers: Iterable[Any]) -> Dict[str, Any]:
    """The gradients that are there: references, not copies."""
    return {name: one.grad for name, one in _parameters(modules, optimizers) if one.grad is not None}


def restore(modules: Dict[str, Any], optimizers: Iterable[Any], saved: Dict[str, Any]) -> List[str]:
    """Put gradients back; parameters without a saved one get None. Returns the names that found no parameter."""
    import torch

    left = dict(saved)
    for name, parameter in _parameters(modules, optimizers):
        value = left.pop(name, None)
        if value is not None:
            value = value.like(parameter) if hasattr(value, "like") else value
            layout = torch.preserve_format
            value = value.to(device=parameter.device, dtype=parameter.dtype, copy=True, memory_format=layout)
        parameter.grad = value
    return sorted(left)


def _parameters(modules: Dict[str, Any], optimizers: Iterable[Any]) -> List[Tuple[str, Any]]:
    """Every parameter once: those of the models by name, those that only an optimizer knows by their place there."""
    names = parameter_names(modules)
    found: Dict[int, Tuple[str, Any]] = {}
    for module in modules.values():
        for parameter in module.parameters():
            found.setdefault(id(parameter), (names[id(parameter)], parameter))
    for number, optimizer in enumerate(optimizers):
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                found.setdefault(id(parameter), ("optimizer %d, group %d, parameter %d" % (number, g, i), parameter))
    return list(found.values())
