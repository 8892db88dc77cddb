"""Names of parameters as the script's author knows them: without the prefixes of wrappers.

torch.compile adds `_orig_mod.`, DataParallel and DistributedDataParallel add `module.`, activation checkpointing
`_checkpoint_wrapped_module.`. A checkpoint holds none of them, so that what was saved wrapped loads unwrapped and the
other way round. Must not strip a user's own `module.`, nor that of AveragedModel, which has state beside it.
"""

from typing import Any, Dict, List, Tuple

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}


def wrapper_prefixes(module: Any) -> List[Tuple[str, str]]:
    """(prefix with the wrapper, prefix without it), the innermost first."""
    found = []
    for path, child in module.named_modules(remove_duplicate=False):
        attribute = _attribute(type(child))
        if attribute in child._modules:
            outer = path + "." if path else ""
            found.append((outer + attribute + ".", outer))
    return sorted(found, key=lambda pair: -len(pair[0]))


def _attribute(kind: type) -> str:
    """Where a wrapper of torch's, or a class made from one (fully_shard makes such), keeps what it wraps; else ""."""
    for base in kind.__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
            return _WRAPPERS[base.__name__]
    return ""


def clean_names(module: Any, names: List[str]) -> Dict[str, str]:
    """For each live name of a state_dict, the name under which it is stored."""
    prefixes = wrapper_prefixes(module)
    result = {}
    for name in names:
        clean = name
        for wrapped, plain in prefixes:
            if clean.startswith(wrapped):
                clean = plain + clean[len(wrapped) :]
        result[name] = clean
    return result


def parameter_names(modules: Dict[str, Any]) -> Dict[int, str]:
    """id(parameter) → its stored name, over all registered models (the model's own name leads)."""
    names: Dict[int, str] = {}
    for owner, module in modules.items():
        live = [name for name, _ in module.named_parameters()]
        cleaned = clean_names(module, live)
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), (owner + "." if owner else "") + cleaned[name])
    return names
