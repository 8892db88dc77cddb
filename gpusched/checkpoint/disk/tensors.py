"""Tensors in one file, in the layout of safetensors: written and hashed at the same time, read in one go.

    8 bytes, little-endian: length of the header
    header: JSON, padded with spaces; name → dtype, shape, place of its bytes
    the bytes of all tensors, without gaps, each in the order that its shape says

Why not torch.save: this can be hashed while it is written, the header can be read without torch, and there is nothing
in it that could be executed. Any reader of safetensors reads it. What that layout has no words for stands in the
header's `__metadata__` under "gpusched" (see plan.py): other names of the same bytes, strides, and dtypes of torch
that are stored as another.
Must not import torch at its top, nor know what the tensors mean.
"""

import json
import math
import os
import struct
import sys
from typing import Any, Dict, Iterator, List, Tuple

from gpusched.checkpoint.disk import stream
from gpusched.checkpoint.disk.plan import DTYPES, Plan, make_plan, revive, width
from gpusched.checkpoint.errors import CheckpointError

PIECE = 8 << 20  # bytes that are written and hashed at a time
_ALIGN = 64  # bytes: the data starts at a multiple of it
_HEADER_LIMIT = 256 << 20


def write(path: str, tensors: Dict[str, Any]) -> Dict[str, Any]:
    """Write a new file, durable when this returns: {"size": bytes, "checksum": "sha256:…"}.

    Tensors that share memory are stored once. Raises OSError from the disk (nothing is cleaned up then, and a file that
    exists is not touched), CheckpointError for a tensor without bytes of its own (sparse, quantized, meta…).
    """
    return write_plan(path, make_plan(tensors))


def write_plan(path: str, plan: Plan) -> Dict[str, Any]:
    """The same for tensors that have been sorted out already; see `write`."""
    if sys.byteorder != "little":
        raise CheckpointError("Checkpoints are written on little-endian machines only.", "Train without a directory.")
    names = sorted(plan.stored, key=lambda name: -plan.stored[name].element_size())  # keeps every tensor aligned
    head = _header(plan, names)
    return stream.write(path, _pieces(head, [plan.stored[name] for name in names]))


def _header(plan: Plan, names: List[str]) -> bytes:
    table: Dict[str, Any] = {}
    if plan.notes:
        table["__metadata__"] = {"gpusched": json.dumps(plan.notes, separators=(",", ":"))}
    at = 0
    for name in names:
        tensor = plan.stored[name]
        dtype, shape = _stored_as(tensor)
        size = tensor.numel() * tensor.element_size()
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return struct.pack("<Q", len(text)) + text


def _stored_as(tensor: Any) -> Tuple[str, List[int]]:
    """Its dtype and shape in the file: complex numbers as pairs, dtypes unknown to safetensors as bytes."""
    dtype, shape = str(tensor.dtype).split(".")[-1], list(tensor.shape)
    if dtype in DTYPES:
        return DTYPES[dtype], shape
    if tensor.is_complex():
        return {4: "F16", 8: "F32", 16: "F64"}[tensor.element_size()], [*shape, 2]
    return "U8", [*shape, tensor.element_size()]


def _pieces(head: bytes, tensors: List[Any]) -> Iterator[memoryview]:
    """All bytes of the file in pieces. A piece is valid as long as somebody holds it."""
    yield memoryview(head)
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        if tensor.device.type != "cpu" and tensor.is_contiguous():
            flat, count = tensor.reshape(-1), max(1, PIECE // tensor.element_size())
            for start in range(0, flat.numel(), count):
                yield bytes_of(flat[start : start + count].cpu())
            continue
        whole = bytes_of(tensor.cpu().contiguous())
        for start in range(0, len(whole), PIECE):
            yield whole[start : start + PIECE]


def bytes_of(tensor: Any) -> memoryview:
    """The memory of a contiguous CPU tensor, which lives as long as the view does. Works without numpy."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(bytearray())
    import ctypes

    array = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    array.tensor = tensor
    return memoryview(array).cast("B")


def header(path: str) -> Dict[str, Dict[str, Any]]:
    """name → {"dtype": a name of torch's such as "float32", "shape": [...]}; "same_as" for another name of stored
    bytes. Needs no torch. Raises OSError, or ValueError if this is not such a file.
    """
    stored, notes, _ = _read_header(path)
    plain = {short: long for long, short in DTYPES.items()}
    found = {name: {"dtype": plain[one["dtype"]], "shape": one["shape"]} for name, one in stored.items()}
    for name, note in notes.items():
        told = {key: note[key] for key in ("dtype", "shape") if key in note}
        found[name] = dict(found.get(name, {}), **told)
        if "of" in note:
            found[name]["same_as"] = note["of"]
    return found


def read(path: str, checksum: str = "") -> Dict[str, Any]:
    """name → tensor on the CPU, in memory of its own, with the strides and the sharing that it was written with.

    With a checksum ("sha256:…") every byte is compared on the way, while the next ones are read.
    Raises OSError, or ValueError for a file that is cut off, is not of this kind, or does not match.
    """
    import torch

    stored, notes, start = _read_header(path)
    names = sorted(stored, key=lambda name: int(stored[name]["data_offsets"][0]))
    plain = {short: getattr(torch, long, None) for long, short in DTYPES.items()}
    tensors: Dict[str, Any] = {}
    with stream.Reader(path, bool(checksum)) as reader:
        reader.skip(start)
        for name in names:
            dtype = plain[stored[name]["dtype"]]
            if dtype is None:
                raise ValueError("this torch has no dtype for %s of %s" % (stored[name]["dtype"], name))
            tensors[name] = torch.empty(stored[name]["shape"], dtype=dtype)
            reader.fill(bytes_of(tensors[name]))
        if checksum and reader.checksum() != checksum:
            raise ValueError("%s is damaged: its checksum does not match" % os.path.basename(path))
    return revive(torch, tensors, notes)


def _read_header(path: str) -> Tuple[Dict[str, Any], Dict[str, Any], int]:
    """(stored tensors, notes, where the data starts), after checking that every place lies within the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(size - 8, _HEADER_LIMIT):
            raise ValueError("it is not a safetensors file, or is cut off")
        table = json.loads(file.read(length))
    if not isinstance(table, dict):
        raise ValueError("its header is not a table")
    notes = json.loads((table.pop("__metadata__", None) or {}).get("gpusched", "{}"))
    try:
        _check_places(table, size - 8 - length)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("its header is damaged") from None
    return table, notes, 8 + length


def _check_places(table: Dict[str, Any], size: int) -> None:
    at = 0
    for name, one in sorted(table.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        begin, end = one["data_offsets"]
        if one["dtype"] not in DTYPES.values():
            raise ValueError("%s has the unknown dtype %s" % (name, one["dtype"]))
        if any(type(n) is not int or n < 0 for n in one["shape"]):
            raise ValueError("%s has a shape that cannot be" % name)
        if begin != at or end - begin != math.prod(one["shape"]) * width(one["dtype"]):
            raise ValueError("the place of %s in the file does not fit its shape" % name)
        at = end
    if at != size:
        raise ValueError("it holds %d bytes of data instead of %d" % (size, at))
