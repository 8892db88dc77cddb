"""The mean of the logical ranks' gradients, with the same bits however many processes they are spread over.

Gradients are added in the order of the logical ranks. Where one has none for a parameter, nothing is added (over the
wire: minus zero, which changes no bit). Whether there is one process or several must not show in the result, nor in its
layout, on which the order of a later sum may depend (that of a norm, for clipping).
Does not import torch before the script does.
"""

from typing import Any, Dict, List, Optional

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.wire import Wire


class Gradients:
    """Takes .grad away from the parameters, collects what each round leaves there, and puts the mean back."""

    def __init__(self, parameters: List[Any], count: int, wire: Wire) -> None:
        self._count, self._wire = count, wire
        self._parameters = [one for one in parameters if one.requires_grad]
        self._before = [one.grad for one in self._parameters]
        self._here: List[Optional[Any]] = [None] * len(self._parameters)  # sums of a run with one process
        self._everywhere: Dict[Any, Any] = {}  # sums of a run with several, each a vector for one kind of parameter
        self._forget()

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def add_round(self) -> None:
        """One logical rank of every process is done: add what they found, and start the next ones without gradients."""
        if not _torch().is_grad_enabled():  # an evaluation
            return
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.layout != _torch().strided:
                raise CheckpointError(
                    "A gradient of shape %s is sparse; logical ranks add dense ones." % str(tuple(parameter.shape)),
                    "Use sparse=False in that embedding.",
                )
        if self._wire.size == 1:
            self._add_here()
        else:
            self._add_everywhere()
        self._forget()

    def _add_here(self) -> None:
        for number, parameter in enumerate(self._parameters):
            found, total = parameter.grad, self._here[number]
            if found is None:
                continue
            if total is None:
                self._here[number] = found.detach().clone()  # the script may hold what it found in .grad
            else:
                total.add_(found.detach())

    def _add_everywhere(self) -> None:
        torch = _torch()
        for kind, numbers in self._kinds().items():
            parameters = [self._parameters[number] for number in numbers]
            size = sum(one.numel() for one in parameters)
            # behind the gradients a one for each parameter that has one
            flat = torch.full((size + len(parameters),), -0.0, dtype=kind[0], device=kind[1])
            place = 0
            for number, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    flat[place : place + parameter.numel()].copy_(parameter.grad.reshape(-1))
                    flat[size + number] = 1
                place += parameter.numel()
            if kind not in self._everywhere:
                self._everywhere[kind] = torch.full_like(flat, -0.0)
            self._wire.add_in_order(self._everywhere[kind], flat)

    def _kinds(self) -> Dict[Any, List[int]]:
        kinds: Dict[Any, List[int]] = {}
        for number, parameter in enumerate(self._parameters):
            kinds.setdefault((parameter.dtype, parameter.device), []).append(number)
        return kinds

    def finish(self) -> None:
        """Write the mean to .grad, on top of what was there before the loop."""
        torch = _torch()
        totals = self._here if self._wire.size == 1 else self._unpacked()
        for parameter, before, total in zip(self._parameters, self._before, totals):  # noqa: B905 - needs Python 3.10
            if total is None:
                parameter.grad = before
                continue
            mean = torch.empty_like(parameter, requires_grad=False)
            torch.div(total.detach(), self._count, out=mean)
            parameter.grad = mean if before is None else before + mean

    def _unpacked(self) -> List[Optional[Any]]:
        totals: List[Optional[Any]] = [None] * len(self._parameters)
        for kind, numbers in self._kinds().items():
            flat = self._everywhere.get(kind)
            if flat is None:
                continue
            present, place = (flat[-len(numbers) :] > 0).tolist(), 0
            for number, has_gradient in zip(numbers, present):  # noqa: B905 - strict= needs Python 3.10
                parameter = self._parameters[number]
                if has_gradient:
                    totals[number] = flat[place : place + parameter.numel()].view(parameter.shape)
                place += parameter.numel()
        return totals


def _torch() -> Any:
    import torch

    return torch
