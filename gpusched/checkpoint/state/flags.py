"""What a module remembers outside of its tensors: which parameters are frozen, which submodules are in the other mode.

Fine-tuning unfreezes layers midway: `if epoch == 5: unfreeze()` does not run again in a process that resumes at epoch
7. So the flags belong to the checkpoint, and come back twice like all small state: when the run resumes, and after
the first lines of its epoch have run.

    requires_grad     as it was saved, for every parameter by name
    training          of submodules that differ from the whole, such as frozen BatchNorm layers in eval(); only where
                      the whole is in train() now and was when it was saved. The mode of the whole belongs to the
                      script: a stop inside an evaluation must not leave a model in eval() for the training after it

Nothing is stored of a module in which all is trainable and in one mode. Must not change a tensor.
"""

from typing import Any, Dict, List

from gpusched.checkpoint.state.names import clean_names

KEY = "(flags)"  # the entry beside the tensors; no name of a parameter has parentheses

Flags = Dict[str, Any]


def capture(module: Any, frozen_at_first: List[str]) -> Flags:
    """The flags now, and which parameters the script had frozen when the run began."""
    odd = [path for path, one in _modules(module) if one.training != module.training]
    return {
        "frozen": frozen(module),
        "odd": sorted(set(odd)),
        "training": module.training,
        "frozen at first": frozen_at_first,
    }


def worth_storing(flags: Flags) -> bool:
    return bool(flags["frozen"] or flags["odd"] or flags["frozen at first"])


def frozen(module: Any) -> List[str]:
    """Names of parameters that want no gradient."""
    return [name for name, one in _parameters(module) if not one.requires_grad]


def restore(module: Any, flags: Flags) -> None:
    """Put the flags back; parameters and modules that the checkpoint does not name are as in an unfrozen model."""
    still = set(flags["frozen"])
    for name, parameter in _parameters(module):
        if parameter.requires_grad == (name in still):
            parameter.requires_grad_(name not in still)
    if module.training and flags["training"]:
        odd = set(flags["odd"])
        for path, one in _modules(module):
            one.training = path not in odd


def _parameters(module: Any) -> Any:
    named = list(module.named_parameters(remove_duplicate=False))
    cleaned = clean_names(module, [name for name, _ in named])
    return [(cleaned[name], one) for name, one in named]


def _modules(module: Any) -> Any:
    """(path, module) without wrappers' prefixes; a wrapper has the path of what it wraps."""
    named = [(path + "." if path else "", one) for path, one in module.named_modules(remove_duplicate=False)]
    cleaned = clean_names(module, [path for path, _ in named])
    return [(cleaned[path], one) for path, one in named]
