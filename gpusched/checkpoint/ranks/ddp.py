"""The bucket trap of DistributedDataParallel, and its cure.

DDP adds gradients of all ranks bucket by bucket. After its first backward pass it lays the buckets out anew, in the
order in which gradients became ready, and then never again. A resumed process starts with the first layout, so its
first step adds in another order than the uninterrupted run did: on three or more ranks the bits differ, even though
every saved tensor is right (two ranks hide it, for a + b = b + a). So:

    1. a fresh run notes in which order the gradients became ready when DDP looked (first pass; with static_graph, where
       DDP looks later, the first two)
    2. the order is kept in the checkpoint, as names of parameters
    3. a resumed run makes DDP's first passes with a stand-in for the model, whose backward pass reaches the parameters
       in that very order, before anything is loaded: DDP then lays out its buckets as it did in the first run

The stand-in needs no input and touches neither buffers nor generators; its gradients are dropped. With
find_unused_parameters DDP keeps its first layout, and nothing needs to be done.
Must not import torch before the script does. Uses of DDP what is stable since torch 2.0: the child named `module`, and
the attributes `find_unused_parameters`, `static_graph`, `require_forward_param_sync`.
"""

import sys
from typing import Any, Callable, Dict, List

from gpusched.checkpoint.state.names import clean_names

Saved = Dict[str, Any]


class Buckets:
    """All DistributedDataParallel modules among the registered models."""

    def __init__(self, modules: Dict[str, Any], tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._saved: Saved = {}
        self._orders = {key: _Order(ddp) for key, ddp in _find(modules).items()}

    def watch(self) -> None:
        """Note the order of gradients where it is not known yet; costs nothing after the first backward passes."""
        for key, order in self._orders.items():
            if key not in self._saved:
                order.watch()

    def capture(self) -> Saved:
        """What a checkpoint keeps, as plain values; {} without DDP. Call it between backward passes."""
        found = {key: order.to_plain() for key, order in self._orders.items() if order.known}
        return dict(self._saved, **found)

    def restore(self, saved: Saved) -> None:
        """Bring DDP to the saved layout. Before models and generators are loaded; every rank calls it.

        Tells where that cannot be done: the run then continues with right values, and its bits may differ.
        """
        for key, order in self._orders.items():
            if key in saved:
                problem = order.refuse(saved[key])
                if problem:
                    self._tell(
                        "%s: %s, so DDP adds gradients in another order than before this stop: right, but on three or "
                        "more ranks not bit for bit" % (key, problem)
                    )
                    continue
                order.repeat(saved[key]["passes"])
                self._saved[key] = saved[key]


def _find(modules: Dict[str, Any]) -> Dict[str, Any]:
    """The DDP modules by name, the outermost first; {} if the script does not use DDP."""
    library = sys.modules.get("torch.nn.parallel.distributed")
    if library is None:
        return {}
    found: Dict[str, Any] = {}
    seen = set()
    for name, module in modules.items():
        for child in module.modules():
            if isinstance(child, library.DistributedDataParallel) and id(child) not in seen:
                seen.add(id(child))
                found["%s DDP %d" % (name or "model", len(found))] = child
    return found


class _Order:
    """The order in which one DDP module's gradients become ready in the passes after which it lays out its buckets."""

    def __init__(self, ddp: Any) -> None:
        self._ddp = ddp
        self.passes: List[List[str]] = []
        self._static = bool(getattr(ddp, "static_graph", False))
        named = [(name, one) for name, one in ddp.module.named_parameters() if one.requires_grad]
        ignored = getattr(ddp, "parameters_to_ignore", ())
        cleaned = clean_names(ddp.module, [name for name, _ in named])
        self._parameters = {cleaned[name]: one for name, one in named if name not in ignored}
        self._hooks: List[Any] = []
        self._task = -1
        self._done = False

    def to_plain(self) -> Saved:
        return {"static_graph": self._static, "passes": [list(one) for one in self.passes]}

    # noting

    def watch(self) -> None:
        if self._keeps_its_layout() or self._hooks or self._done:
            return
        for name, parameter in self._parameters.items():
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._noter(name)))

    def _keeps_its_layout(self) -> bool:
        return bool(self._ddp.find_unused_parameters) and not self._static

    def _noter(self, name: str) -> Callable[[Any], None]:
        """DDP's own hook on the gradient runs at the same moment, so both see the same order."""

        def note(_: Any) -> None:
            if not self._done and self._ddp.require_forward_param_sync:  # within no_sync() DDP does not look either
                self._note(name)

        return note

    def _note(self, name: str) -> None:
        task = _backward_pass()
        if task != self._task and (self._static or not self.passes):
            self._done = len(self.passes) == 2
            if not self._done:
                self.passes.append([])
        self._task = task
        if not self._done:
            self.passes[-1].append(name)
            self._done = not self._static and len(self.passes[0]) == len(self._parameters)
        if self._done:  # a hook must not remove itself while it runs
            _after_this_pass(self._stop_watching)

    def _stop_watching(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def known(self) -> bool:
        """Whether what was noted tells DDP's layout: whole passes only."""
        return bool(self.passes) and (self._static or len(self.passes[0]) == len(self._parameters))

    # repeating

    def refuse(self, saved: Saved) -> str:
        """Why the saved order cannot be brought about here; empty if it can."""
        if saved["static_graph"] != self._static or self._keeps_its_layout():
            return "it was made with other options (static_graph, find_unused_parameters) when this was saved"
        if getattr(self._ddp, "mixed_precision", None) is not None:
            return "DDP's own mixed precision casts parameters where this library cannot follow"
        for one in saved["passes"]:
            if len(set(one)) != len(one):
                return "a parameter got its gradient in several parts (reentrant activation checkpointing)"
            strange = set(one) - set(self._parameters)
            if strange:
                return "%s, which had a gradient when this was saved, has none here" % sorted(strange)[0]
        missing = set(self._parameters) - set(saved["passes"][0])
        if missing and not self._static:
            return "%s has a gradient here and had none when this was saved" % sorted(missing)[0]
        return ""

    def repeat(self, passes: List[List[str]]) -> None:
        """DDP's first passes once more, with a stand-in for the model."""
        import torch

        ddp, parameters = self._ddp, self._parameters
        sparse = _sparse_weights(torch, ddp)
        kept = {name: parameter.grad for name, parameter in parameters.items()}
        model, synced = ddp._modules["module"], ddp.require_forward_param_sync
        try:
            for order in passes:
                for parameter in parameters.values():
                    parameter.grad = None
                stand_in = _stand_in(torch, [parameters[name] for name in order], sparse)
                ddp._modules["module"] = stand_in
                ddp.require_forward_param_sync = False  # so that buffers are not sent around
                with torch.enable_grad():
                    ddp.forward().backward()
        finally:
            ddp._modules["module"] = model
            ddp.require_forward_param_sync = synced
            for name, parameter in parameters.items():
                parameter.grad = kept[name]


def _stand_in(torch: Any, order: List[Any], sparse: "set[int]") -> Any:
    """A module without input or state whose backward pass reaches the parameters in this order.

    autograd visits what was computed last first, so the sum is built from the end of the order.
    """

    class StandIn(torch.nn.Module):  # type: ignore[misc]
        def forward(self) -> Any:
            total = torch.zeros((), device=order[0].device)
            for parameter in reversed(order):
                total = total + _number(torch, parameter, id(parameter) in sparse).to(total.device)
            return total

    return StandIn()


def _number(torch: Any, parameter: Any, sparse: bool) -> Any:
    if sparse:
        index = torch.zeros(1, dtype=torch.int64, device=parameter.device)
        return torch.nn.functional.embedding(index, parameter, sparse=True).float().sum()
    return (torch.view_as_real(parameter) if parameter.is_complex() else parameter).sum().float()


def _sparse_weights(torch: Any, ddp: Any) -> "set[int]":
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return {id(one.weight) for one in ddp.module.modules() if isinstance(one, kinds) and one.sparse}


def _backward_pass() -> int:
    """A number for the backward() that is running."""
    import torch

    return int(torch._C._current_graph_task_id())


def _after_this_pass(call: Callable[[], None]) -> None:
    import torch

    torch.autograd.Variable._execution_engine.queue_callback(call)
