"""Tensors as they lie on disk: names, shapes, kinds of number and bytes by range. Needs no torch, loads only parts.

Reads the layout of safetensors: 8 bytes of length, a JSON header, raw bytes. (torchfile.py reads torch's own.)
Must not trust a header: sizes and offsets are checked against the file before anything is read.
"""

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Tuple

from gpusched.checkpoint.errors import CheckpointError

# The names of safetensors, torch's names, bytes per element.
_KINDS = (
    ("F64", "float64", 8), ("F32", "float32", 4), ("F16", "float16", 2), ("BF16", "bfloat16", 2),
    ("F8_E4M3", "float8_e4m3fn", 1), ("F8_E5M2", "float8_e5m2", 1), ("F8_E8M0", "float8_e8m0fnu", 1),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz", 1), ("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
    ("I64", "int64", 8), ("I32", "int32", 4), ("I16", "int16", 2), ("I8", "int8", 1),
    ("U64", "uint64", 8), ("U32", "uint32", 4), ("U16", "uint16", 2), ("U8", "uint8", 1),
    ("BOOL", "bool", 1), ("C64", "complex64", 8), ("C128", "complex128", 16),
)  # fmt: skip
DTYPES = {name: dtype for name, dtype, _ in _KINDS}
NAMES = {dtype: name for name, dtype, _ in _KINDS}
WIDTHS = dict({dtype: width for _, dtype, width in _KINDS}, complex32=4)
HEADER_LIMIT = 100 << 20


@dataclass(frozen=True)
class Array:
    """One tensor or numpy array. `dtype` is torch's or numpy's name; `bytes_at` reads part of it in C order."""

    dtype: str
    shape: Tuple[int, ...]
    width: int  # bytes per element
    kind: str = "tensor"  # or "numpy"
    path: str = ""
    offset: int = 0
    held: Any = None  # bytes, or a function that gives the whole torch tensor, instead of a place in a file
    pieces: int = 1  # in how many pieces ranks have saved it

    @property
    def count(self) -> int:
        total = 1
        for length in self.shape:
            total *= length
        return total

    @property
    def size(self) -> int:
        return self.count * self.width

    def bytes_at(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, less at the end. Raises OSError, and CheckpointError if the file is cut short."""
        size = max(0, min(size, self.size - start))
        if isinstance(self.held, bytes):
            return self.held[start : start + size]
        if self.held is not None:
            from gpusched.checkpoint.disk import tensors

            return bytes(tensors.bytes_of(self.held())[start : start + size])
        with open(self.path, "rb") as file:
            file.seek(self.offset + start)
            data = file.read(size)
        if len(data) != size:
            raise CheckpointError("%s is cut short." % self.path, "Copy it again, or use another checkpoint.")
        return data


@dataclass(frozen=True)
class OneAtATime:
    """Makes whole tensors when their bytes are asked for, and keeps the last: they are read piece by piece."""

    make: Callable[[str], Any]
    kept: Dict[str, Any] = field(default_factory=dict)

    def named(self, name: str) -> Callable[[], Any]:
        def whole() -> Any:
            if name not in self.kept:
                self.kept.clear()
                self.kept[name] = self.make(name).detach().cpu().contiguous()
            return self.kept[name]

        return whole


# ---- safetensors ------------------------------------------------------------------------------------------------


def safetensors_arrays(path: str) -> Dict[str, Array]:
    """The tensors of a safetensors file. Raises CheckpointError for a file that is none, or is cut short; OSError."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise _no_safetensors(path, "its header is longer than the file")
        text = file.read(length)
    try:
        header = json.loads(text)
        notes = json.loads((header.pop("__metadata__", None) or {}).get("gpusched", "{}"))
        found = {str(name): _entry(path, entry, 8 + length, size) for name, entry in header.items()}
        return _noted(path, found, notes)
    except KeyError as error:
        raise _no_safetensors(path, "its header lacks %s" % error) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _no_safetensors(path, "its header cannot be read: %s" % error) from None


def _entry(path: str, entry: Dict[str, Any], base: int, size: int) -> Array:
    if entry["dtype"] not in DTYPES:
        raise ValueError("it holds numbers of kind %r, which this version does not know" % (entry["dtype"],))
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    shape = tuple(int(one) for one in entry["shape"])
    array = Array(dtype, shape, WIDTHS[dtype], path=path, offset=base + begin)
    if any(length < 0 for length in shape) or not 0 <= begin <= end or end - begin != array.size:
        raise ValueError("sizes and offsets do not agree")
    if base + end > size:
        raise ValueError("the file is cut short (%d bytes instead of %d)" % (size, base + end))
    return array


def _noted(path: str, found: Dict[str, Array], notes: Dict[str, Any]) -> Dict[str, Array]:
    """What plan.py has noted: kinds of numbers that the layout has no name for, and other names of the same memory."""
    for name, note in notes.items():
        dtype, base = note.get("dtype", ""), found.get(note.get("of", name))
        if base is None or (dtype and dtype not in WIDTHS):
            raise ValueError("a note on %s does not fit" % name)
        dtype, shape = dtype or base.dtype, tuple(note.get("shape", base.shape))
        array = Array(dtype, shape, WIDTHS[dtype], path=path, offset=base.offset)
        if "of" in note:
            begin = base.offset + note["offset"] * array.width
            array = replace(array, offset=begin)
            in_place = note["stride"] == row_major(shape) and "stride" not in notes.get(note["of"], {})
            if not in_place:  # a transposed view and the like: torch has to put it together
                array = replace(array, held=OneAtATime(_read_whole(path)).named(name))
            elif not base.offset <= begin <= begin + array.size <= base.offset + base.size:
                raise ValueError("a note on %s does not fit" % name)
        elif array.size != base.size:
            raise ValueError("a note on %s does not fit" % name)
        found[name] = array
    return found


def _read_whole(path: str) -> Callable[[str], Any]:
    def make(name: str) -> Any:
        from gpusched.checkpoint.disk import tensors

        return tensors.read(path)[name]

    return make


def row_major(shape: Tuple[int, ...]) -> List[int]:
    """Strides of a tensor whose elements follow each other as its shape says."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(1, length)
    return strides[::-1]


def _no_safetensors(path: str, why: str) -> CheckpointError:
    return CheckpointError("%s is not a whole safetensors file: %s." % (path, why), "Copy or download it again.")
