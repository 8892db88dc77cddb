"""The data files of a checkpoint (format 2), and what they hold: one tree of plain values and tensors.

    state.json, tensors.safetensors               tree["shared"]: position, seed, weights…, equal on all ranks
    own-<rank>.json, own-<rank>.safetensors       tree["own"]: generators, metrics, the script's values of each rank
    shards/…                                      each rank's pieces of tensors that none has whole (ranks/shards.py)

A .safetensors file is absent where there are no tensors. Format 1 (`state.json` and `tensors.pt`, one rank, one flat
tree) is still read, with torch.load(weights_only=True). Everything is read onto the CPU, whatever device it was saved
from; loading into the registered objects copies to the device that they are on.
Must not read a file that has not been checked, by files.examine or by the checksums handed to `read`.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple

from gpusched.checkpoint.disk import stream, tensors
from gpusched.checkpoint.disk.plain import decode, encode
from gpusched.checkpoint.disk.plan import Plan, make_plan
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks import shards

SHARED, SHARED_TENSORS = "state.json", "tensors.safetensors"
OWN, OWN_TENSORS = "own-%d.json", "own-%d.safetensors"
OLD_TENSORS = "tensors.pt"  # format 1
OWN_ROLES = ("metrics", "extra", "generators")  # registered objects whose state may differ between ranks
_IS_OWN = re.compile(r"own-\d+\.json")
_OURS = "|".join(map(re.escape, (SHARED, SHARED_TENSORS, OLD_TENSORS)))
_READ = re.compile(r"own-\d+\.(json|safetensors)|shards/.*|" + _OURS)

Entries = Dict[str, Dict[str, Any]]


@dataclass(frozen=True)
class Half:
    """One half of a tree on its way to the disk: JSON, the tensors that it names, and this rank's pieces of others."""

    name: str  # "shared" or "own"
    text: bytes
    plan: Plan
    pieces: Plan
    about_pieces: Dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return self.plan.size + self.pieces.size


def encode_half(tree: Dict[str, Any], name: str) -> Half:
    """Encode tree["shared"] or tree["own"]. Its plain values are copied by that, its tensors are not.

    Raises CheckpointError, naming its place, for what cannot be stored.
    """
    table: Dict[str, Any] = {}
    text = json.dumps(_encode(tree[name], table), allow_nan=False, separators=(",", ":")).encode()
    whole, pieces, about = shards.split(table)
    return Half(name, text, make_plan(whole), make_plan(pieces), about)


def encode_halves(tree: Dict[str, Any]) -> List[Half]:
    """Both halves, as one rank writes them; see `encode_half`."""
    return [encode_half(tree, "shared"), encode_half(tree, "own")]


def plans(halves: List[Half]) -> List[Plan]:
    """Everything in them that has bytes to copy or to write."""
    return [plan for half in halves for plan in (half.plan, half.pieces)]


def copied(halves: List[Half], arena: Any) -> List[Half]:
    """The halves with their tensors copied into an arena (snapshot.py), from which they can be written later."""
    copies = iter(arena.copy(plans(halves)))
    return [replace(half, plan=next(copies), pieces=next(copies)) for half in halves]


def _encode(half: Dict[str, Any], table: Dict[str, Any]) -> Dict[str, Any]:
    """Registered objects go by the names that the script gave them, so that messages and tensors do, too."""
    plain = {key: encode(value, table, key) for key, value in half.items() if key != "parts"}
    if "parts" in half:
        plain["parts"] = {key: encode(value, table, key) for key, value in half["parts"].items()}
    return plain


def encode_all(tree: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """(JSON, table of tensors) of a whole tree. Raises CheckpointError, naming its place, for what cannot be stored."""
    table: Dict[str, Any] = {}
    plain = {half: _encode(tree[half], table) for half in ("shared", "own")}
    whole, pieces, _ = shards.split(table)
    make_plan(dict(whole, **pieces))
    return plain, table


def write_shared(folder: str, tree: Dict[str, Any]) -> Entries:
    """Write tree["shared"] into a folder, durable when this returns: the manifest's entries for its files.

    Of tensors that lie on several ranks each rank writes its pieces in `write_own`.
    Raises CheckpointError for what cannot be stored, OSError from the disk.
    """
    return write_half(folder, encode_half(tree, "shared"), SHARED, SHARED_TENSORS)


def write_own(folder: str, rank: int, tree: Dict[str, Any]) -> Entries:
    """Write tree["own"] of one rank, and this rank's pieces of sharded tensors; otherwise like `write_shared`."""
    return write_own_half(folder, rank, encode_halves(tree))


def write_own_half(folder: str, rank: int, halves: List[Half]) -> Entries:
    """The same for halves that have been encoded."""
    entries = write_half(folder, halves[1], OWN % rank, OWN_TENSORS % rank)
    for half in halves:
        entries.update(shards.write(folder, rank, half.pieces, half.about_pieces, half.name))
    return entries


def write_halves(folder: str, rank: int, halves: List[Half]) -> Entries:
    """All that one rank writes: rank 0 the shared half, every rank its own half and its pieces."""
    entries = write_half(folder, halves[0], SHARED, SHARED_TENSORS) if rank == 0 else {}
    entries.update(write_own_half(folder, rank, halves))
    return entries


def write_half(folder: str, half: Half, name: str, tensor_name: str) -> Entries:
    """Write an encoded half under these two names, without pieces; see `write_shared`."""
    entries = {name: stream.write_bytes(os.path.join(folder, name), half.text)}
    if half.plan.stored:
        entries[tensor_name] = tensors.write_plan(os.path.join(folder, tensor_name), half.plan)
    return entries


def read_with_checksums(folder: str, rank: int) -> List[str]:
    """Names of the files that `read` compares with the manifest's entries itself."""
    whose = _whose(folder, rank)
    return [SHARED, SHARED_TENSORS, OLD_TENSORS, OWN % whose, OWN_TENSORS % whose]


def belongs(name: str) -> bool:
    """Whether a file of this name would be read as part of a checkpoint."""
    return _READ.fullmatch(name) is not None


def _whose(folder: str, rank: int) -> int:
    return rank if os.path.exists(os.path.join(folder, OWN % rank)) else 0


def read(folder: str, rank: int = 0, entries: Optional[Entries] = None) -> Tuple[Dict[str, Any], int]:
    """(the tree that was written, the number of ranks that saved). A rank that did not save gets rank 0's own half.

    With the manifest's entries every file is compared with its checksum while it is read. Raises OSError; ValueError
    for a damaged file; CheckpointError for one that may hold code.
    """
    names = os.listdir(folder) if entries is None else entries
    owners = len([name for name in names if _IS_OWN.fullmatch(name)])
    if owners == 0:
        return _read_old(folder, entries), 1
    whose = _whose(folder, rank)
    shared = _read_half(folder, "shared", SHARED, SHARED_TENSORS, entries)
    own = _read_half(folder, "own", OWN % whose, OWN_TENSORS % whose, entries)
    return {"shared": shared, "own": own}, owners


def _read_half(folder: str, half: str, name: str, tensor_name: str, entries: Optional[Entries]) -> Dict[str, Any]:
    plain = _read_json(folder, name, entries)
    table: Dict[str, Any] = {}
    path = os.path.join(folder, tensor_name)
    if os.path.exists(path) and (entries is None or tensor_name in entries):
        table = tensors.read(path, entries[tensor_name]["checksum"] if entries else "")
    table.update(shards.placeholders(folder, half))
    found = {key: decode(value, table) for key, value in plain.items() if key != "parts"}
    if "parts" in plain:
        found["parts"] = {key: decode(value, table) for key, value in plain["parts"].items()}
    return found


def _read_json(folder: str, name: str, entries: Optional[Entries]) -> Any:
    if entries is not None and name not in entries:
        raise ValueError("its manifest does not list %s" % name)
    with open(os.path.join(folder, name), "rb") as file:
        data = file.read()
    if entries is not None and "sha256:" + hashlib.sha256(data).hexdigest() != entries[name]["checksum"]:
        raise ValueError("%s is damaged: its checksum does not match" % name)
    return json.loads(data)


def _read_old(folder: str, entries: Optional[Entries]) -> Dict[str, Any]:
    """A checkpoint of format 1, as a tree of today."""
    plain, table = _read_json(folder, SHARED, entries), {}
    path = os.path.join(folder, OLD_TENSORS)
    if os.path.exists(path) and (entries is None or OLD_TENSORS in entries):
        table = _load_old(path, entries[OLD_TENSORS]["checksum"] if entries else "")
    tree: Dict[str, Any] = {"shared": {"parts": {}}, "own": {"parts": {}}}
    for key, value in plain.items():
        decoded = decode(value, table)
        if key.startswith("parts/"):
            part = key[len("parts/") :]
            tree["own" if part.split(".")[0] in OWN_ROLES else "shared"]["parts"][part] = decoded
        else:
            tree["shared" if key in ("position", "seed") else "own"][key] = decoded
    return tree


def _load_old(path: str, checksum: str) -> Dict[str, Any]:
    import pickle

    import torch

    if checksum:
        with stream.Reader(path, True) as reader:
            reader.skip(os.path.getsize(path))
            if reader.checksum() != checksum:
                raise ValueError("%s is damaged: its checksum does not match" % OLD_TENSORS)
    try:
        table: Dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "%s holds something else than tensors, perhaps code. It has not been run." % path,
            "Do not trust this checkpoint, unless you know who wrote it.",
        ) from None
    return table
