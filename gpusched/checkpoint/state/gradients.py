"""Gradients in the middle of an accumulation window, by the name of their parameter.

Only saved at run.micro_step(), where they hold work that the next optimizer step needs. Must not touch parameters.
"""

from typing import Any, Dict, Iterable, List, Tuple

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import fit
from gpusched.checkpoint.state.names import parameter_names


def capture(modules: Dict[str, Any], optimizers: Iterable[Any]) -> Dict[str, Any]:
    """The gradients that are there: references, not copies.

    Raises CheckpointError where FSDP2 keeps gradients to itself because they have not been added over the ranks yet.
    """
    _refuse_unreduced(modules)
    return {name: one.grad for name, one in _parameters(modules, optimizers) if one.grad is not None}


def restore(modules: Dict[str, Any], optimizers: Iterable[Any], saved: Dict[str, Any]) -> List[str]:
    """Put gradients back; parameters without a saved one get None. Returns the names that found no parameter."""
    import torch

    left = dict(saved)
    for name, parameter in _parameters(modules, optimizers):
        value = left.pop(name, None)
        if value is not None:
            value = fit(value, parameter)
            layout = torch.preserve_format
            value = value.to(device=parameter.device, dtype=parameter.dtype, copy=True, memory_format=layout)
        parameter.grad = value
    return sorted(left)


def _refuse_unreduced(modules: Dict[str, Any]) -> None:
    """With set_requires_gradient_sync(False) every rank has full gradients of its own, which no attribute shows."""
    for key, module in modules.items():
        for one in module.modules():
            state = one._get_fsdp_state() if hasattr(one, "_get_fsdp_state") else None
            group = getattr(state, "_fsdp_param_group", None)
            if group is not None and not group.reduce_grads:
                raise CheckpointError(
                    "%s has gradients that its ranks have not added up yet (set_requires_gradient_sync(False)); they "
                    "cannot be saved." % (key or "The model"),
                    "Leave out run.micro_step(), so that saving waits for run.step(), or let every micro batch sync.",
                )


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
