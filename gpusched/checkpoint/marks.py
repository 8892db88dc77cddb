"""Short marks of values of any kind, for the trace of a rehearsal: equal values have equal marks.

Unlike fingerprint.digest this takes everything, also what no checkpoint could store (it then marks the type only), and
it is quick: of a large tensor it hashes a sample and the sum of its bits, which notices one flipped bit. Marks are for
comparing two runs of the same script, never for trusting a file. Must not change or copy what it looks at to a device.
"""

import ctypes
import hashlib
import random
import sys
from typing import Any, Callable, Dict

from gpusched.checkpoint.state import randomness

_WHOLE = 1 << 18  # bytes of a tensor that are hashed entirely; of larger ones a sample and the sum
_SAMPLE = 4096  # elements
_LONG = 1000  # items of a list of which only the last ones are looked at
_LAST = 50
_DEPTH = 8

Feed = Callable[[Any], None]


def mark(value: Any) -> str:
    """Twelve letters that are equal for equal values."""
    result = hashlib.blake2b(digest_size=6)
    _feed(result.update, value, _DEPTH)
    return result.hexdigest()


def global_generators() -> Dict[str, str]:
    """Marks of the generators that everybody shares: python, numpy, torch, and cuda:<n> where CUDA is in use."""
    state = randomness.capture()
    devices = state.pop("cuda", [])
    marks = {name: mark(one) for name, one in state.items()}
    return dict(marks, **{"cuda:%d" % index: mark(one) for index, one in enumerate(devices)})


def size_of(value: Any, depth: int = _DEPTH) -> int:
    """Bytes of all tensors in a tree of dictionaries and lists."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    if depth and isinstance(value, dict):
        return sum(size_of(item, depth - 1) for item in value.values())
    if depth and isinstance(value, (list, tuple)):
        return sum(size_of(item, depth - 1) for item in value)
    return 0


def _feed(update: Feed, value: Any, depth: int) -> None:
    kind = type(value)
    update(kind.__name__.encode("utf-8", "replace"))
    if value is None or kind in (bool, int, float, complex, str, bytes):
        update(repr(value).encode("utf-8", "backslashreplace"))
    elif depth <= 0:
        return
    elif isinstance(value, dict) or hasattr(value, "keys"):
        _feed_dictionary(update, value, depth)
    elif isinstance(value, (list, tuple)):
        _feed_list(update, value, depth)
    elif isinstance(value, (set, frozenset)):
        _feed(update, sorted(map(repr, value)), depth - 1)
    elif not _feed_array(update, value):
        _feed_object(update, value, depth)


def _feed_dictionary(update: Feed, value: Any, depth: int) -> None:
    try:
        pairs = sorted(((str(key), value[key]) for key in value.keys()), key=lambda pair: pair[0])  # noqa: SIM118
    except Exception:  # a mapping of the user's own that is none
        return
    for name, item in pairs:
        update(b"/" + name.encode("utf-8", "backslashreplace"))
        _feed(update, item, depth - 1)


def _feed_list(update: Feed, value: Any, depth: int) -> None:
    update(b"%d" % len(value))
    if value and all(type(item) in (int, float, bool, str) for item in value):
        update(repr(value).encode("utf-8", "backslashreplace"))
        return
    for item in value if len(value) <= _LONG else value[-_LAST:]:
        _feed(update, item, depth - 1)


def _feed_array(update: Feed, value: Any) -> bool:
    """Tensors (of a sharded one the part that is here) and numpy arrays; False for anything else."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        with torch.no_grad():
            _feed_tensor(update, value.to_local() if hasattr(value, "to_local") else value.detach(), torch)
        return True
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        update(("%s%s" % (value.dtype.str, value.shape)).encode())
        update(b"" if value.dtype.hasobject else numpy.ascontiguousarray(value).tobytes())
        return True
    return False


def _feed_tensor(update: Feed, tensor: Any, torch: Any) -> None:
    update(("%s%s" % (tensor.dtype, tuple(tensor.shape))).encode())
    if tensor.is_meta or not tensor.numel():
        return
    if tensor.layout is not torch.strided or tensor.is_quantized:
        update(repr(tensor).encode())
        return
    flat = tensor.contiguous().view(-1)
    if flat.numel() * flat.element_size() > _WHOLE:
        update(b"%d" % _sum_of_bits(flat, torch))
        flat = flat[:: max(1, flat.numel() // _SAMPLE)].contiguous()
    # by address: numpy may be absent, and does not know bfloat16
    host = flat.cpu()
    update((ctypes.c_char * (host.numel() * host.element_size())).from_address(host.data_ptr()))


def _sum_of_bits(flat: Any, torch: Any) -> int:
    """The sum of a flat tensor's words of eight bytes, which is ten times quicker than summing smaller ones; the
    bytes of an odd end are added alone."""
    raw = flat.view(torch.uint8)
    whole = raw.numel() // 8 * 8
    if raw.storage_offset() % 8:
        raw = raw.clone()
    return int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum(dtype=torch.int64))


def _feed_object(update: Feed, value: Any, depth: int) -> None:
    """A generator by its state, a batch class of the user's by its attributes, anything else by its type."""
    if randomness.is_generator(value) or isinstance(value, random.Random):
        _feed(update, randomness.generator_state(value), depth - 1)
    elif not isinstance(value, type) and not callable(value):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            _feed_dictionary(update, attributes, depth - 1)
