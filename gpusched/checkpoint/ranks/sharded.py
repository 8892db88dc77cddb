"""A tensor of a checkpoint that is in pieces, and how a loaded state takes on the layout of the live one.

A loaded tree has a `Sharded` where a DTensor was. It reads only the pieces that are asked for: as a DTensor like a
live one (the geometry is DCP's, see resharding.py), or whole, without torch.distributed. Talks to no other rank.
Must not import torch before the script does.
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

from gpusched.checkpoint.errors import CheckpointError


def is_sharded(value: Any) -> bool:
    """Whether this is a DTensor, without loading torch.distributed for the question."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


class PieceFile:
    """One rank's file of pieces, opened when the first is needed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._places: Dict[str, Any] = {}
        self._mapped: Any = None
        self._read: Optional[Dict[str, Any]] = None

    def piece(self, name: str, sizes: Tuple[int, ...], dtype: str) -> Any:
        """A saved piece, mapped from the file: copy from it, do not keep it. Raises OSError, ValueError."""
        import torch

        from gpusched.checkpoint.disk import arrays

        if self._mapped is None:
            self._places = arrays.safetensors_arrays(self.path)
            self._mapped = torch.from_file(self.path, shared=False, size=os.path.getsize(self.path), dtype=torch.uint8)
        place = self._places.get(name)
        if place is None or place.held is not None or (place.shape, place.dtype) != (sizes, dtype):
            return self._otherwise(name)
        raw = self._mapped[place.offset : place.offset + place.size]
        if raw.data_ptr() % place.width:
            raw = raw.clone()
        return raw.view(getattr(torch, dtype)).reshape(sizes)

    def _otherwise(self, name: str) -> Any:
        """Of kinds of numbers that safetensors has no name for, and memory that is stored under another name."""
        from gpusched.checkpoint.disk import tensors

        if self._read is None:
            self._read = tensors.read(self.path)
        return self._read[name]


@dataclass(frozen=True)
class Piece:
    """Part of a tensor: where it begins, how long it is in every dimension, and the file that has it."""

    offsets: Tuple[int, ...]
    sizes: Tuple[int, ...]
    file: PieceFile

    @property
    def count(self) -> int:
        return product(self.sizes)


@dataclass(frozen=True)
class Sharded:
    """A saved tensor that is in pieces: stands in a loaded tree where the tensor was, and reads only what is asked for.

    `shape` and `dtype` (a name such as "float32") are those of the whole; `placements` how it was laid out ("S0", "R").
    """

    name: str
    shape: Tuple[int, ...]
    dtype_name: str
    placements: Tuple[str, ...]
    pieces: Tuple[Piece, ...] = field(repr=False)

    @property
    def dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype_name)

    def read(self, piece: Piece) -> Any:
        """One piece, mapped from its file: copy from it, do not keep it."""
        return piece.file.piece(self.name, piece.sizes, self.dtype_name)

    def whole(self) -> Any:
        """The full tensor on the CPU. Needs no torch.distributed."""
        import torch

        result = torch.empty(self.shape, dtype=self.dtype)
        for piece in self.pieces:
            place = tuple(slice(a, a + n) for a, n in zip(piece.offsets, piece.sizes))  # noqa: B905 - Python 3.9
            result[place] = self.read(piece)
        return result

    def like(self, live: Any) -> Any:
        """A new tensor of these values in the layout and on the device of a live one (a DTensor or a whole tensor).

        The dtype stays the saved one. Raises CheckpointError if the shapes differ.
        """
        if tuple(live.shape) != self.shape:
            raise CheckpointError(
                "%s is %s in the checkpoint and %s here." % (self.name, self.shape, tuple(live.shape)),
                "Is it a checkpoint of another model? Give this run a checkpoint directory of its own.",
            )
        if not is_sharded(live):
            return self.whole().to(live.device)
        from gpusched.checkpoint.ranks import resharding

        return resharding.load(self, live)

    def __deepcopy__(self, memo: Any) -> "Sharded":
        return self


def fit(value: Any, live: Any = None) -> Any:
    """A loaded value in the layout of the live one that it replaces; containers are gone through together.

    Sharded → a DTensor like the live one, or whole; a whole tensor → a DTensor, if the live one is one. No other rank
    is asked. Where nothing is live, or its shape is another, the tensor comes whole.
    """
    same = getattr(live, "shape", None) is not None and tuple(live.shape) == tuple(getattr(value, "shape", ()) or ())
    if isinstance(value, Sharded):
        return value.like(live) if same else value.whole()
    if is_sharded(live) and same and hasattr(value, "dim") and not is_sharded(value):
        from gpusched.checkpoint.ranks import resharding

        return resharding.distribute(value, live)
    if type(value) is dict:
        known = live if isinstance(live, dict) else {}
        return {key: fit(item, known.get(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        below: Union[List[Any], Tuple[Any, ...]] = [None] * len(value)
        if isinstance(live, (list, tuple)) and len(live) == len(value):
            below = live
        return type(value)(fit(item, one) for item, one in zip(value, below))  # noqa: B905
    return value


def laid_out(value: Any, parameter: Any) -> Any:
    """A loaded tensor of an optimizer's state whose shape is not its parameter's (Adafactor's rows and columns).

    Beside a parameter that lies on a mesh it is laid out as it was saved, if that fits that mesh, else in full on
    every rank. Counters that were saved as ordinary scalars stay so.
    """
    if not is_sharded(parameter) or (not isinstance(value, Sharded) and len(value.shape) == 0):
        return fit(value)
    from gpusched.checkpoint.ranks import resharding

    return resharding.beside(value, parameter)


def gathered(value: Any) -> Any:
    """The full tensor of a DTensor (collective: all ranks of its mesh must call it) or of a Sharded; else the value."""
    if is_sharded(value):
        return value.to(value.device_mesh.device_type).full_tensor()  # its own device may be the CPU (offloaded)
    return value.whole() if isinstance(value, Sharded) else value


def without_layout(plain: Any) -> Any:
    """JSON with sharded tensors written like whole ones, to compare states that are laid out in different ways."""
    if type(plain) is list:
        return [without_layout(item) for item in plain]
    if type(plain) is not dict:
        return plain
    if "$sharded" in plain:
        return {"$tensor": plain["$sharded"]}
    return {key: without_layout(item) for key, item in plain.items()}


def product(sizes: Any) -> int:
    """The number of elements of a tensor of these sizes."""
    total = 1
    for size in sizes:
        total *= size
    return total
