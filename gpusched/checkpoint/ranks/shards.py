"""Tensors that no single process holds (DTensor: FSDP2, tensor parallelism): a file per rank, read in any layout.

Each rank writes the pieces that it owns into `shards/<tree>-<rank>.safetensors`, and into a JSON beside it which tensor
they belong to and where in it they lie. Which pieces those are is DCP's knowledge (torch.distributed.checkpoint), and
so is, when loading, which part of which piece goes where; so a checkpoint of 4 ranks loads on 2, on 1, on 3, or
without torch.distributed at all. DCP's own files hold a pickle; these hold none.
Saving and loading talk to no other rank: they may run in a background thread, and no rank can wait for another here.
Must not import torch before the script does, nor name a file from what a file says.
"""

import json
import os
import re
import zlib
from typing import Any, Dict, List, Tuple

from gpusched.checkpoint.disk import stream, tensors
from gpusched.checkpoint.disk.plan import Plan
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import Piece, PieceFile, Sharded, is_sharded, product

FOLDER = "shards"
Entries = Dict[str, Dict[str, Any]]


def split(table: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any], Dict[str, Any]]:
    """(whole tensors, this rank's pieces of the others, what those pieces are).

    Pieces are ordinary tensors that share memory with the DTensors; copy them like any other for a later write. The
    third, plain values, says for every DTensor its shape, dtype and layout, and where this rank's piece begins.
    Raises CheckpointError for a DTensor whose pieces are sums still to be made (Partial).
    """
    sharded = {name: value for name, value in table.items() if is_sharded(value)}
    if not sharded:
        return table, {}, {}
    from gpusched.checkpoint.ranks import resharding

    whole = {name: value for name, value in table.items() if name not in sharded}
    about: Dict[str, Any] = {}
    pieces: Dict[str, Any] = {}
    for name, value in sharded.items():
        if any(one.is_partial() for one in value.placements):
            raise CheckpointError(
                "%s is a sum over ranks that has not been made yet (Partial)." % name,
                "Redistribute it to Shard or Replicate before it is saved.",
            )
        about[name] = {
            "shape": list(value.shape),
            "dtype": str(value.dtype).split(".")[1],
            "placements": [_placement(one) for one in value.placements],
            "piece": None,
        }
        found = resharding.piece_of(name, value) if _owner(name, value) else None
        if found is not None:
            offsets, pieces[name] = found
            about[name]["piece"] = {"offsets": offsets, "sizes": list(pieces[name].shape)}
    return whole, pieces, about


def _placement(placement: Any) -> str:
    """R for a copy on every rank, S0 for a split along dimension 0; a split of another kind by its own name."""
    if placement.is_replicate():
        return "R"
    return "S%d" % placement.dim if placement.is_shard() else type(placement).__name__


def _owner(name: str, value: Any) -> bool:
    """Of ranks that hold the same piece one writes it; which one follows from the name, so that they share the work."""
    place = value.device_mesh.get_coordinate()
    if place is None:
        return False
    turn = zlib.crc32(name.encode())
    return all(
        coordinate == turn % value.device_mesh.size(dimension)
        for dimension, coordinate in enumerate(place)
        if value.placements[dimension].is_replicate()
    )


def write(folder: str, rank: int, pieces: Plan, about: Dict[str, Any], tree: str = "shared") -> Entries:
    """Write this rank's pieces into `<folder>/shards`, flushed to the disk: the entries of its files for the manifest.

    `pieces` and `about` are from split(), the pieces as a plan, copied or not. Without DTensors nothing is written.
    Raises OSError.
    """
    if not about:
        return {}
    os.makedirs(os.path.join(folder, FOLDER), exist_ok=True)
    stem = "%s/%s-%d" % (FOLDER, tree, rank)
    entries = {}
    if pieces.stored:
        entries[stem + ".safetensors"] = tensors.write_plan(os.path.join(folder, stem + ".safetensors"), pieces)
    entries[stem + ".json"] = stream.write_bytes(os.path.join(folder, stem + ".json"), json.dumps(about).encode())
    _flush(os.path.join(folder, FOLDER))
    return entries


def _flush(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def placeholders(folder: str, tree: str = "shared") -> Dict[str, Sharded]:
    """The sharded tensors of a checkpoint whose files have been compared with their checksums, by name.

    They may stand in a tree in their tensors' place; only the descriptions are read. Raises CheckpointError if a piece
    is missing, ValueError or OSError for a file that cannot be read.
    """
    about: Dict[str, Any] = {}
    pieces: Dict[str, List[Piece]] = {}
    for path in _descriptions(folder, tree):
        with open(path, encoding="utf-8") as file:
            described = json.load(file)
        source = PieceFile(path[: -len("json")] + "safetensors")
        for key, one in described.items():
            if about.setdefault(key, one)["shape"] != one["shape"] or about[key]["dtype"] != one["dtype"]:
                raise _damaged(folder, key, "its files disagree about it")
            if one["piece"] is not None:
                piece = one["piece"]
                pieces.setdefault(key, []).append(Piece(tuple(piece["offsets"]), tuple(piece["sizes"]), source))
    return {key: _put_together(folder, key, one, _distinct(pieces.get(key, []))) for key, one in about.items()}


def _distinct(pieces: List[Piece]) -> Tuple[Piece, ...]:
    """Without copies: a mesh that is part of a larger one (tensor parallelism besides FSDP2) hides who has the same."""
    return tuple({(one.offsets, one.sizes): one for one in reversed(pieces)}.values())


def _put_together(folder: str, name: str, one: Dict[str, Any], parts: Tuple[Piece, ...]) -> Sharded:
    shape = tuple(one["shape"])
    if sum(piece.count for piece in parts) != product(shape) or not all(_inside(piece, shape) for piece in parts):
        raise _damaged(folder, name, "its pieces do not make it up")
    return Sharded(name, shape, one["dtype"], tuple(one["placements"]), parts)


def _descriptions(folder: str, tree: str) -> List[str]:
    place = os.path.join(folder, FOLDER)
    pattern = re.compile(r"%s-\d+\.json" % re.escape(tree))
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    return [os.path.join(place, name) for name in names if pattern.fullmatch(name)]


def _inside(piece: Piece, shape: Tuple[int, ...]) -> bool:
    return len(piece.offsets) == len(piece.sizes) == len(shape) and all(
        begin >= 0 and begin + size <= length
        for begin, size, length in zip(piece.offsets, piece.sizes, shape)  # noqa: B905
    )


def _damaged(folder: str, name: str, why: str) -> CheckpointError:
    return CheckpointError("%s in %s cannot be put together: %s." % (name, folder, why), "Use another checkpoint.")
