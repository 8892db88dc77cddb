"""The registered objects: which kind of part each one is. See stateful.py for what a part does.

Must not import torch before the script does, nor store anything but tensors and plain values.
"""

import random
from typing import Any, Dict, List

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import fit
from gpusched.checkpoint.state import metrics, randomness
from gpusched.checkpoint.state.moments import OptimizerPart
from gpusched.checkpoint.state.stateful import StatefulPart
from gpusched.checkpoint.state.weights import ModulePart

__all__ = ["GeneratorPart", "MetricPart", "ModulePart", "OptimizerPart", "PlainPart", "StatefulPart", "make_part"]


class MetricPart(StatefulPart):
    """torchmetrics: its state_dict is empty by default, and without its update counts a mean comes out wrong."""

    def __init__(self, key: str, target: Any) -> None:
        super().__init__(key, target)
        self._at_first = metrics.moving(target)

    def capture(self) -> Any:
        return metrics.capture(self.target, self._at_first)

    def restore(self, tree: Any) -> List[str]:
        return metrics.restore(self.target, fit(tree))


class GeneratorPart(StatefulPart):
    """An explicit generator: random.Random, numpy.random.Generator or RandomState, torch.Generator."""

    def capture(self) -> Any:
        return randomness.generator_state(self.target)

    def restore(self, tree: Any) -> List[str]:
        try:
            randomness.set_generator_state(self.target, tree)
        except (RuntimeError, TypeError, ValueError, KeyError):  # a GPU's on a CPU, or of another kind
            text = "%s was saved from another kind of generator, or on another kind of device: it starts as the script "
            return [(text + "made it, so what it draws differs from an uninterrupted run") % self.key]
        return []


class PlainPart(StatefulPart):
    """A list or dictionary of plain values, filled in place so that the script's own name for it stays right."""

    def capture(self) -> Any:
        return self.target

    def restore(self, tree: Any) -> List[str]:
        tree = fit(tree, self.target)
        if isinstance(self.target, list):
            self.target[:] = tree
        else:
            self.target.clear()
            self.target.update(tree)
        return []


def make_part(key: str, target: Any, modules: Dict[str, Any]) -> Any:
    """The part for an object. Raises CheckpointError for one whose state cannot be taken."""
    if randomness.is_generator(target) or isinstance(target, random.Random):
        return GeneratorPart(key, target)
    if metrics.is_metric(target):
        return MetricPart(key, target)
    _refuse_private_shards(key, target)
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


def _refuse_private_shards(key: str, target: Any) -> None:
    """Older ways to shard, whose state_dict() is a rank's own and does not say so: it would be saved as everybody's."""
    inside = target.modules() if hasattr(target, "modules") and hasattr(target, "named_parameters") else [target]
    kinds = {base.__name__ for one in inside for base in type(one).__mro__ if base.__module__.startswith("torch.")}
    if "FullyShardedDataParallel" in kinds:
        raise CheckpointError(
            "%s is wrapped in FullyShardedDataParallel (FSDP1), which cannot be saved here." % key,
            "Use FSDP2: torch.distributed.fsdp.fully_shard(model).",
        )
    if "ZeroRedundancyOptimizer" in kinds:
        raise CheckpointError(
            "%s is a ZeroRedundancyOptimizer, whose state lies on other ranks and cannot be saved here." % key,
            "Use FSDP2 (torch.distributed.fsdp.fully_shard) with an ordinary optimizer.",
        )
