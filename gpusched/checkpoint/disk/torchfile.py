"""What is in a file that torch.save wrote, without torch and without executing anything of it.

Such a file is a zip archive: a pickle that describes everything, and the bytes of every storage, not compressed. The
pickle is walked by a reader that knows how torch writes tensors. Every other class or function it names becomes an
`Opaque` with that name: none is looked up, imported or called. The bytes of tensors are found in the archive itself.
Must not trust what the pickle says: places and sizes are checked against the archive.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Tuple

from gpusched.checkpoint.disk.arrays import WIDTHS, Array, OneAtATime, row_major
from gpusched.checkpoint.errors import CheckpointError

_LIMIT = 64 << 20  # bytes of the pickle, which holds names and shapes, never a tensor's numbers
_ERRORS = (
    zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    RecursionError, OverflowError, struct.error,
)  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,  # not dict: a state_dict has an attribute
    ("collections", "Counter"): dict,
    ("collections", "defaultdict"): lambda *given: dict(*given[1:]),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
    ("torch", "Size"): tuple,
}


class Opaque:
    """Something of another class: its name, and what it was made from. Never the thing itself.

    Each name gets a subclass without anything of its own, since pickles make objects from classes and by calls.
    """

    name = ""
    made_from: List[Any]
    items: Dict[Any, Any]

    def __new__(cls, *made_from: Any, **named: Any) -> "Opaque":
        self = super().__new__(cls)
        self.made_from, self.items = [*made_from, *named.values()], {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.made_from.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.made_from.append(value)

    def extend(self, values: Any) -> None:
        self.made_from.extend(values)

    add = append


def _opaque(name: str) -> Any:
    return type("Opaque", (Opaque,), {"name": name})


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int  # in elements
    shape: Tuple[int, ...]
    stride: List[int] = field(default_factory=list)


def read_torch(path: str) -> Any:
    """What was saved: dictionaries, lists, plain values, `Array` for tensors, `Opaque` for what has another class.

    Raises CheckpointError if it is not a whole file of torch's present kind (since 1.6), OSError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith("/data.pkl")]
            if archive.getinfo(name).file_size > _LIMIT:
                raise ValueError("its table of contents is too large")
            described = _Reader(io.BytesIO(archive.read(name))).load()
            places = _Places(path, archive, name[: -len("data.pkl")])
            return _finished(described, places, 100)
    except _ERRORS as error:
        why = "%s is not a whole torch file: %s." % (path, error or type(error).__name__)
        raise CheckpointError(why, "Copy it again, or use another checkpoint.") from None


def torch_arrays(path: str) -> Dict[str, Array]:
    """The tensors of a file that is a flat table of them, as a checkpoint of format 1 has it. Raises as read_torch."""
    table = read_torch(path)
    for name, one in table.items() if isinstance(table, dict) else [("it", table)]:
        if not isinstance(one, Array):
            what = one.name if isinstance(one, Opaque) else "%s, a %s" % (name, type(one).__name__)
            raise CheckpointError(
                "%s is not a table of tensors: it holds %s, which is not a tensor." % (path, what),
                "Do not trust this file, unless you know who wrote it.",
            )
    return {str(name): one for name, one in table.items()}


class _Places:
    """Where the storages' bytes lie in the archive."""

    def __init__(self, path: str, archive: zipfile.ZipFile, folder: str) -> None:
        self.path, self._archive, self._folder = path, archive, folder
        self._known: Dict[str, Tuple[int, int]] = {}
        order = folder + "byteorder"
        if order in archive.namelist() and archive.read(order).strip() != b"little":
            raise ValueError("it was written on a big-endian machine")

    def of(self, key: str) -> Tuple[int, int]:
        """(offset in the file, bytes) of a storage."""
        if key not in self._known:
            entry = self._archive.getinfo("%sdata/%s" % (self._folder, key))
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its tensors are compressed")
            with open(self.path, "rb") as file:
                file.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
            self._known[key] = entry.header_offset + 30 + name + extra, entry.file_size
        return self._known[key]

    def array(self, tensor: _Tensor) -> Array:
        """Raises ValueError if it would reach beyond its storage."""
        width = WIDTHS[tensor.dtype]
        begin, size = self.of(tensor.storage.key)
        array = Array(tensor.dtype, tensor.shape, width, path=self.path, offset=begin + tensor.offset * width)
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride))  # noqa: B905 - Python 3.9
        if array.count and not 0 <= tensor.offset * width <= (tensor.offset + reach + 1) * width <= size:
            raise ValueError("a tensor reaches beyond its storage")
        if array.count == 0 or _follows(tensor):
            return array
        span = Array(tensor.dtype, (reach + 1,), width, path=self.path, offset=array.offset)
        return replace(array, held=_strided(span, tensor))


def _follows(tensor: _Tensor) -> bool:
    """Whether the elements lie in the order of the shape (the stride of a dimension of one element says nothing)."""
    pairs = zip(tensor.shape, tensor.stride, row_major(tensor.shape))  # noqa: B905
    return all(length == 1 or stride == wanted for length, stride, wanted in pairs)


def _strided(span: Array, tensor: _Tensor) -> Any:
    def make(_: str) -> Any:
        import torch

        flat = torch.frombuffer(bytearray(span.bytes_at(0, span.size)), dtype=getattr(torch, tensor.dtype))
        return torch.as_strided(flat, tensor.shape, tensor.stride)

    return OneAtATime(make).named("")


def _finished(value: Any, places: _Places, depth: int) -> Any:
    """The same, with places for tensors."""
    if depth == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, _Tensor):
        return places.array(value)
    if isinstance(value, dict):
        return {key: _finished(one, places, depth - 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_finished(one, places, depth - 1) for one in value)
    if isinstance(value, Opaque):
        value.made_from = [_finished(one, places, depth - 1) for one in value.made_from]
        value.items = _finished(value.items, places, depth - 1)
    return value


class _Reader(pickle.Unpickler):
    """Gives names a harmless meaning: how torch writes tensors, plain containers, and `Opaque` for all others."""

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return _Storage(kind if isinstance(kind, str) else "uint8", str(key))

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins")  # as Python 2 called it, and old pickles still do
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _rebuild
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *rest: tensor
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda *rest: None
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in WIDTHS:
            return name
        return _opaque("%s.%s" % (module, name))


def _rebuild(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> _Tensor:
    dtype = next((one for one in rest if isinstance(one, str)), storage.dtype)
    sizes = tuple(int(length) for length in shape)
    steps = [int(step) for step in stride]
    if len(sizes) != len(steps) or any(length < 0 for length in (*sizes, *steps)) or int(offset) < 0:
        raise ValueError("a tensor's shape makes no sense")
    return _Tensor(storage, dtype, int(offset), sizes, steps)
