"""What may be stored, and how: a tree of plain values becomes JSON, its tensors go into a table beside it.

Nothing executable is ever written or read: no pickle of anybody's classes. What is not a tensor, a numpy array or a
plain Python value is refused with a sentence that names where it sits. JSON has no tuples, sets, bytes or
dictionaries with number keys; those are written as {"$kind": …} and come back as what they were.
Must not import torch or numpy: where one of their objects is met, they are loaded already.
"""

import base64
import sys
from collections import Counter, OrderedDict, deque
from typing import Any, Dict

from gpusched.checkpoint.errors import CheckpointError

_LARGE = 1 << 16  # bytes: bigger numpy arrays go into the tensor file


def encode(value: Any, tensors: Dict[str, Any], where: str) -> Any:
    """Turn a value into JSON, adding its tensors to `tensors` under names made from `where`.

    Raises CheckpointError, naming the place, for anything that cannot be stored safely.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if value - value == 0.0 else {"$float": repr(value)}  # nan and inf are not JSON
    if kind is list:
        return [encode(item, tensors, "%s/%d" % (where, i)) for i, item in enumerate(value)]
    if kind in _CONTAINERS:
        items = list(value) if kind is not set else sorted(value, key=repr)
        tagged = {"$" + kind.__name__: encode(items, tensors, where)}
        return dict(tagged, maxlen=value.maxlen) if kind is deque else tagged
    if kind in (dict, OrderedDict, Counter):
        return _encode_dict(value, tensors, where)
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind is complex:
        return {"$complex": [repr(value.real), repr(value.imag)]}
    return _encode_foreign(value, tensors, where)


_CONTAINERS = (tuple, set, frozenset, deque)


def _encode_dict(value: Dict[Any, Any], tensors: Dict[str, Any], where: str) -> Any:
    plain = type(value) is not Counter and all(type(key) is str and not key.startswith("$") for key in value)
    if plain:
        return {key: encode(item, tensors, "%s/%s" % (where, key)) for key, item in value.items()}
    pairs = [
        [encode(key, tensors, where), encode(item, tensors, "%s/%s" % (where, key))] for key, item in value.items()
    ]
    return {"$Counter" if type(value) is Counter else "$dict": pairs}


def _encode_foreign(value: Any, tensors: Dict[str, Any], where: str) -> Any:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            kind = "$sharded" if type(value).__name__ == "DTensor" else "$tensor"
            return {kind: _keep(value, tensors, where)}
        if isinstance(value, torch.Size):
            return {"$tuple": list(value)}
        if isinstance(value, (torch.dtype, torch.device)):
            return {"$" + type(value).__name__: str(value)}
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) and not value.dtype.hasobject:
        array = numpy.ascontiguousarray(value)
        form = {"dtype": value.dtype.str, "shape": list(value.shape), "scalar": isinstance(value, numpy.generic)}
        if torch is not None and array.nbytes > _LARGE:
            flat = torch.from_numpy((array if array.flags.writeable else array.copy()).reshape(-1).view(numpy.uint8))
            return dict(form, **{"$numpy": {"$tensor": _keep(flat, tensors, where)}})
        return dict(form, **{"$numpy": base64.b64encode(array.tobytes()).decode()})
    raise CheckpointError(
        "%s is a %s.%s, which cannot be stored safely in a checkpoint." % (where, kind_of(value), type(value).__name__),
        "Store numbers, strings, lists, dictionaries, tensors or arrays, or a state_dict() made of them.",
    )


def kind_of(value: Any) -> str:
    """The module that a value's class comes from, for messages."""
    return str(type(value).__module__)


def _keep(tensor: Any, tensors: Dict[str, Any], where: str) -> str:
    """Put a tensor into the table under a name of its own. plan.py refuses what cannot be stored, by that name."""
    name, count = where, 1
    while name in tensors:
        name, count = "%s#%d" % (where, count), count + 1
    tensors[name] = tensor
    return name


def decode(value: Any, tensors: Dict[str, Any]) -> Any:
    """The inverse of encode: every container and number comes back with its own type and bits."""
    if type(value) is list:
        return [decode(item, tensors) for item in value]
    if type(value) is not dict:
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, tensors) for key, item in value.items()}
    body = value[tag]
    if tag in ("$tensor", "$sharded"):
        return tensors[body]
    if tag == "$float":
        return float(body)
    if tag == "$bytes":
        return base64.b64decode(body)
    if tag == "$complex":
        return complex(float(body[0]), float(body[1]))
    if tag == "$deque":
        return deque(decode(body, tensors), value["maxlen"])
    if tag in ("$dict", "$Counter"):
        pairs = {decode(key, tensors): decode(item, tensors) for key, item in body}
        return Counter(pairs) if tag == "$Counter" else pairs
    if tag in ("$tuple", "$set", "$frozenset"):
        return {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[tag](decode(body, tensors))
    return _decode_foreign(tag, value, tensors)


def _decode_foreign(tag: str, value: Dict[str, Any], tensors: Dict[str, Any]) -> Any:
    if tag == "$numpy":
        import numpy

        body = decode(value["$numpy"], tensors)
        raw = base64.b64decode(body) if isinstance(body, str) else body.numpy().tobytes()
        array = numpy.frombuffer(raw, dtype=numpy.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return array[()] if value["scalar"] else array
    import torch

    if tag == "$device":
        return torch.device(value[tag])
    if tag == "$dtype":
        return getattr(torch, value[tag].split(".")[1])
    raise CheckpointError("The checkpoint holds %s, which this version does not know." % tag, "Update gpusched.")
