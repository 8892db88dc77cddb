"""Gradients, by the name of their parameter: what of them the next optimizer step still needs.

Inside an accumulation window that is all of them. After a step their values are done with, but whether a parameter has
one is not: zero_grad(set_to_none=False) makes it zero, and an optimizer then goes on moving a parameter that a step
did not use, by its momentum and weight decay, where it passes over one without a gradient. And what no optimizer clears
goes on adding up, and counts in clip_grad_norm_. Must not touch parameters.
"""

from typing import Any, Dict, List, Sequence, Tuple

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import fit
from gpusched.checkpoint.state.names import parameter_names


def capture(modules: Dict[str, Any], optimizers: Sequence[Any], window: bool) -> Dict[str, Any]:
    """{"values": gradients that are needed (references), "zero": who else has one: names, or True for all}.

    window: inside an accumulation window. Raises CheckpointError where FSDP2 keeps gradients to itself because they
    have not been added over the ranks yet.
    """
    if window:
        _refuse_unreduced(modules)
    cleared = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    values, zero, every = {}, [], True
    for name, parameter in _parameters(modules, optimizers):
        if parameter.grad is None:
            every = every and id(parameter) not in cleared
        elif window or id(parameter) not in cleared:
            values[name] = parameter.grad
        else:
            zero.append(name)
    return {"values": values, "zero": True if every and zero else zero}


def restore(modules: Dict[str, Any], optimizers: Sequence[Any], saved: Dict[str, Any]) -> List[str]:
    """Put gradients back; parameters that had none get None. Returns the names that found no parameter."""
    left, zero = dict(saved["values"]), saved["zero"]
    for name, parameter in _parameters(modules, optimizers):
        value = left.pop(name, None)
        if value is not None:
            value = fit(value, parameter).to(device=parameter.device, dtype=parameter.dtype, copy=True)
        elif parameter.requires_grad and (zero is True or name in zero):
            value = parameter.detach().clone().zero_()
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


def _parameters(modules: Dict[str, Any], optimizers: Sequence[Any]) -> List[Tuple[str, Any]]:
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
