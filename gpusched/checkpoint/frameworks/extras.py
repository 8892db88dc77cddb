"""What a model holds and its state_dict() does not: torchmetrics and explicit generators, found among its modules.

Must not look into what is not a module's own attribute: trainers and loaders hang on models, too.
"""

from typing import Any, Dict, List

from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.parts import MetricPart


class Extras:
    """The metrics and generators of one model."""

    def __init__(self, model: Any) -> None:
        self._metrics = MetricPart("metrics", model)
        self._generators = generators_of(model)

    def capture(self) -> Dict[str, Any]:
        """Copies."""
        generators = [randomness.generator_state(one) for one in self._generators]
        return {"metrics": self._metrics.capture(), "generators": generators}

    def restore(self, tree: Dict[str, Any]) -> List[str]:
        """Put it back. Returns sentences on what had nowhere to go."""
        notes: List[str] = []
        missing = set(self._metrics.capture()) - set(tree["metrics"])
        if missing:
            notes.append("the metrics %s are not in the checkpoint: all start afresh" % ", ".join(sorted(missing)))
        else:
            notes += self._metrics.restore(tree["metrics"]) or []
        if len(self._generators) != len(tree["generators"]):
            text = "%d generators of the model were saved and it holds %d: they start afresh"
            return [*notes, text % (len(tree["generators"]), len(self._generators))]
        for one, state in zip(self._generators, tree["generators"]):  # noqa: B905 - Python 3.9
            randomness.set_generator_state(one, state)
        return notes


def generators_of(model: Any) -> List[Any]:
    """Explicit generators that a model and its submodules hold as attributes, in a fixed order."""
    found: Dict[int, Any] = {}
    for one in model.modules():
        for value in vars(one).values():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if randomness.is_generator(item):
                    found.setdefault(id(item), item)
    return list(found.values())
