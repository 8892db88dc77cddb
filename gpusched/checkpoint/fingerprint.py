"""One number for a whole state: equal digests mean equal names, dtypes, shapes and bytes."""

import hashlib
import json
from typing import Any, Dict

from gpusched.checkpoint.disk.plain import encode
from gpusched.checkpoint.ranks.sharded import fit, gathered, without_layout
from gpusched.checkpoint.state.names import clean_names


def digest(target: Any) -> str:
    """SHA-256 in hex of a Run (everything registered), a module, an object with state_dict(), or a tree of values.

    Names of parameters are taken without wrappers' prefixes and in sorted order; the device does not matter, nor how
    tensors are laid out over ranks. Where there are DTensors (FSDP2) it is a collective: call it on every rank.
    Raises CheckpointError for a value that could not be stored either.
    """
    from gpusched.checkpoint.run import Run

    if isinstance(target, Run):
        target = target.state()
    elif hasattr(target, "named_parameters") and hasattr(target, "state_dict"):
        state = target.state_dict()
        cleaned = clean_names(target, list(state))
        target = {cleaned[name]: value for name, value in state.items()}
    elif hasattr(target, "state_dict"):
        target = target.state_dict()
    tensors: Dict[str, Any] = {}
    plain = without_layout(encode(fit(target), tensors, ""))
    result = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = gathered(tensors[name]).cpu().contiguous()
        result.update(("\n%s %s %s\n" % (name, tensor.dtype, tuple(tensor.shape))).encode())
        size = tensor.numel() * tensor.element_size()
        if size:
            import ctypes

            result.update((ctypes.c_char * size).from_address(tensor.data_ptr()))
    return result.hexdigest()
