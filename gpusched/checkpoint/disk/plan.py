"""Which tensors of a table are stored, and what has to be noted so that all come back as they were.

    the same memory under several names (tied weights, a transposed view) is stored once
    a memory layout that the shape does not tell (channels_last) is noted: sums over it depend on it
    dtypes that safetensors has no name for are stored as bytes, complex numbers as pairs

Views that overlap without one containing the other are stored each, with their right values, and come back apart.
Must not import torch at its top, nor touch files.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence, Tuple

from gpusched.checkpoint.errors import CheckpointError

# torch's name → the name in safetensors, of those that every version of that library reads
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def width(dtype: str) -> int:
    """Bytes of one element, by the name in safetensors."""
    return _WIDTHS.get(dtype, 1)


@dataclass(frozen=True)
class Plan:
    """`stored`: name → tensor whose bytes are written. `notes`: name → what its dtype and shape do not tell.

    A note has "of" and "offset" (in elements) for a view of another stored tensor, "stride" (in elements) for an
    unusual layout, "dtype" (a name of torch's) and "shape" where the file says something else.
    """

    stored: Dict[str, Any]
    notes: Dict[str, Dict[str, Any]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.stored.values())


def make_plan(table: Dict[str, Any]) -> Plan:
    """Sort out a table of tensors. Raises CheckpointError, naming it, for a tensor without bytes of its own."""
    if not table:
        return Plan({})
    tensors = {name: plain_tensor(tensor, name) for name, tensor in table.items()}
    notes: Dict[str, Dict[str, Any]] = {}
    for group in _by_storage(tensors):
        _note_aliases(group, tensors, notes)
    for name, tensor in tensors.items():
        note = notes.get(name, {})
        if not note and list(tensor.stride()) != _row_major(tensor.shape) and not _overlaps_itself(tensor):
            note["stride"] = list(tensor.stride())
        dtype = str(tensor.dtype).split(".")[-1]
        if dtype not in DTYPES:
            note.update(dtype=dtype, shape=list(tensor.shape))
        if note:
            notes[name] = note
    stored = {name: tensor for name, tensor in tensors.items() if "of" not in notes.get(name, {})}
    return Plan(stored, notes)


def plain_tensor(tensor: Any, where: str) -> Any:
    """The tensor as one with strides and bytes, detached. Raises CheckpointError, naming the place, if it has none."""
    import torch

    kind = _without_bytes(torch, tensor)
    if kind:
        raise CheckpointError(
            "%s is a %s tensor, which cannot be stored in a checkpoint." % (where, kind),
            "Register objects whose tensors are whole and hold data (.tois_dense(), .dequantize()…).",
        )
    tensor = tensor.detach()
    if type(tensor) is not torch.Tensor:
        tensor = tensor.as_subclass(torch.Tensor)
    return tensor.resolve_conj().resolve_neg()


def _without_bytes(torch: Any, tensor: Any) -> str:
    if type(tensor).__name__ == "DTensor":
        return "sharded"
    if tensor.is_meta:
        return "meta"
    if torch.nn.parameter.is_lazy(tensor):
        return "not yet initialized"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).replace("torch.", "").strip("_").replace("_", " ")
    if hasattr(tensor, "__tensor_flatten__") or type(tensor).__name__ == "FakeTensor":
        return type(tensor).__name__
    return ""


def _by_storage(tensors: Dict[str, Any]) -> List[List[str]]:
    """Groups of names whose tensors lie in one storage; those alone in theirs are left out."""
    groups: Dict[Tuple[Any, ...], List[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.dtype)
            groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _note_aliases(group: Sequence[str], tensors: Dict[str, Any], notes: Dict[str, Dict[str, Any]]) -> None:
    """What lies within the memory of a larger tensor without gaps is noted as a view of that one."""
    wide = sorted(group, key=lambda name: (_span(tensors[name])[0], -_span(tensors[name])[1]))
    base, begin, end = "", 0, 0
    for name in wide:
        first, last = _span(tensors[name])
        if base and begin <= first and last <= end:
            shape, stride = list(tensors[name].shape), list(tensors[name].stride())
            notes[name] = {"of": base, "offset": first - begin, "shape": shape, "stride": stride}
            notes[name]["dtype"] = str(tensors[name].dtype).split(".")[-1]
        elif is_dense(tensors[name]) and last > end:
            base, begin, end = name, first, last


def _span(tensor: Any) -> Tuple[int, int]:
    """The first element in its storage, and the one after the last."""
    first = tensor.storage_offset()
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))  # noqa: B905 - Python 3.9
    return first, first + reach + 1


def is_dense(tensor: Any) -> bool:
    """Whether its elements fill their memory without gaps, in whatever order."""
    first, last = _span(tensor)
    return last - first == tensor.numel() and not _overlaps_itself(tensor)


def _overlaps_itself(tensor: Any) -> bool:
    """Whether two places may be the same memory (expanded tensors, sliding windows)."""
    reach = 0
    for step, n in sorted(zip(tensor.stride(), tensor.shape)):  # noqa: B905
        if n > 1:
            if step <= reach:
                return True
            reach += step * (n - 1)
    return False


def _row_major(shape: Sequence[int]) -> List[int]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(1, n)
    return strides[::-1]


def revive(torch: Any, tensors: Dict[str, Any], notes: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """Give tensors that were read their dtypes, strides and sharing back. Raises ValueError if a note does not fit."""
    try:
        for name, note in notes.items():
            if "of" not in note:
                tensors[name] = _revive_one(torch, tensors[name], note)
        for name, note in notes.items():
            if "of" in note:
                base = tensors[note["of"]]
                tensors[name] = torch.as_strided(base, note["shape"], note["stride"], note["offset"])
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError("a note on its tensors does not fit them (%s)" % str(error).split("\n")[0]) from None
    return tensors


def _revive_one(torch: Any, tensor: Any, note: Dict[str, Any]) -> Any:
    if "dtype" in note:
        dtype = getattr(torch, note["dtype"])
        tensor = torch.view_as_complex(tensor) if dtype.is_complex else tensor.view(dtype)
        tensor = tensor.reshape(note["shape"])
    if "stride" in note:
        tensor = torch.empty_strided(tensor.shape, note["stride"], dtype=tensor.dtype).copy_(tensor)
    return tensor
