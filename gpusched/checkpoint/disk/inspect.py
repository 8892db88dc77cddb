"""What a checkpoint holds, without torch and without executing anything: its values, and where its tensors lie.

The JSON of a checkpoint becomes a tree of four kinds of node: a dictionary, `Items` (a list, tuple, set…), `Plain`
(one value) and `Array` (a tensor or numpy array, still on disk). compare.py, export.py and `gpusched checkpoints` read
checkpoints through this. Must not check checksums (files.examine does) nor change anything.
"""

import base64
import json
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.arrays import WIDTHS, Array, OneAtATime, safetensors_arrays
from gpusched.checkpoint.disk.torchfile import Opaque, read_torch, torch_arrays
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.rundir import read_json

SHARED = "state.json"
_OWN = re.compile(r"own-(\d+)\.json")
_ARGUMENTS = "training_args.bin"  # of Hugging Face's Trainer: settings, not state
_ROLES = ("model", "optimizer", "scheduler", "scaler", "ema", "metrics", "", "generators")  # "": the user's own
_AFTER = ("position", "seed", "sources", "values", "rng", "rng_epoch", "history")
_ELSEWHERE = "Name one checkpoint: a directory such as step-130 with a manifest.json in it."


@dataclass(frozen=True)
class Plain:
    """One value: the type's name, and its text (equal texts of equal types mean equal bits)."""

    type: str
    text: str


@dataclass(frozen=True)
class Items:
    """A list, or what is stored like one: tuple, set, frozenset, deque."""

    type: str
    items: List[Any]


@dataclass(frozen=True)
class Content:
    """A checkpoint: what all ranks share, and each rank's own, as trees of nodes; and its manifest."""

    path: str
    manifest: Dict[str, Any]
    shared: Dict[str, Any]
    own: Dict[int, Dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One value or tensor with its place, such as `model/0.weight`; `rank` is None for what all ranks share."""

    place: str
    node: Any  # Plain or Array; or an empty dictionary or Items
    rank: Optional[int] = None


def read_content(path: str) -> Content:
    """Open a checkpoint directory such as `step-130`. Raises CheckpointError if it is none or is damaged, OSError."""
    path = os.path.abspath(path)
    shared_path = os.path.join(path, SHARED)
    if not os.path.isdir(path):
        raise CheckpointError("%s is not a directory." % path, _ELSEWHERE)
    names = os.listdir(path)
    if SHARED not in names:
        raise CheckpointError("%s is not a checkpoint: it has no %s." % (path, SHARED), _ELSEWHERE)
    manifest = read_json(os.path.join(path, files.MANIFEST), limit=16 << 20) or {}
    version = manifest.get("format")
    if isinstance(version, int) and version > files.FORMAT:
        text = "%s was written by a newer gpusched (format %d; this one reads up to %d)."
        raise CheckpointError(text % (path, version, files.FORMAT), "Update gpusched here.")
    ranks = sorted(int(match[1]) for match in map(_OWN.fullmatch, names) if match)
    own = {rank: _read_tree(os.path.join(path, "own-%d.json" % rank)) for rank in ranks}
    shared = _read_tree(shared_path)
    if manifest.get("framework"):
        shared.update(_framework_files(path, names))
    return Content(path, manifest, shared, own)


def newest(path: str) -> str:
    """The checkpoint that a path means: itself, or the newest good one in a directory of checkpoints.

    Every byte of it is checked; newer ones that are torn are told. Raises CheckpointError if there is none that is
    good, or a newer gpusched has written a newer one; OSError.
    """
    if os.path.exists(os.path.join(path, files.MANIFEST)) or os.path.exists(os.path.join(path, SHARED)):
        found = files.examine(os.path.abspath(path))
        if not found.good:
            raise CheckpointError("%s cannot be used: %s." % (found.path, found.problem), "Use another checkpoint.")
        return found.path
    torn: List[str] = []
    for found in files.newest_good(os.path.abspath(path)):
        if found.newer_format:
            raise CheckpointError("%s cannot be read: %s." % (found.path, found.problem), "Update gpusched here.")
        if found.good:
            for one in torn:
                say("skipping checkpoint " + one)
            return found.path
        torn.append("%s: %s" % (found.name, found.problem))
    if torn:
        raise CheckpointError("No checkpoint in %s is good (%s)." % (path, "; ".join(torn)), "Use another directory.")
    raise CheckpointError("There are no checkpoints in %s." % path, "A checkpoint is a directory such as step-130.")


def entries(content: Content) -> Iterator[Entry]:
    """Everything in it, in a stable order: the shared models first, then optimizers…, the ranks' own last."""
    yield from (Entry(place, node) for place, node in _flat(content.shared, ""))
    for rank, tree in content.own.items():
        yield from (Entry(place, node, rank) for place, node in _flat(tree, ""))


def entries_of_file(path: str) -> Iterator[Entry]:
    """The same of one file: safetensors, or what torch.save wrote. Raises CheckpointError if it is neither, OSError."""
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    tree = _foreign_node(read_torch(path)) if is_zip else safetensors_arrays(path)
    yield from (Entry(place or "(all)", node) for place, node in _flat(tree, "", sort=False))


def in_order(keys: Any) -> List[str]:
    """The parts of a tree as people look for them: the model, what trains it, their own things, then positions."""

    def rank(key: str) -> Tuple[int, str]:
        role = key.partition(".")[0]
        if key in _AFTER:
            return len(_ROLES) + _AFTER.index(key), key
        return _ROLES.index(role if role in _ROLES else ""), key

    return sorted(keys, key=rank)


def _flat(node: Any, place: str, sort: bool = True) -> Iterator[Tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key in in_order(node) if sort and not place else node:
            yield from _flat(node[key], "%s/%s" % (place, key) if place else key)
    elif isinstance(node, Items) and node.items and not all(isinstance(one, Plain) for one in node.items):
        for index, one in enumerate(node.items):
            yield from _flat(one, "%s/%d" % (place, index) if place else str(index))
    else:
        yield place, node


# ---- reading ----------------------------------------------------------------------------------------------------


def _read_tree(path: str) -> Dict[str, Any]:
    """One JSON file with the tensors beside it, as nodes."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = json.load(file)
        if not isinstance(tree, dict):
            raise ValueError("it is not an object")
        tensors = _tensors_beside(path)
        parts = {key[len("parts/") :]: value for key, value in tree.items() if key.startswith("parts/")}  # format 1
        parts.update(tree.get("parts", {}))
        rest = {key: value for key, value in tree.items() if key != "parts" and not key.startswith("parts/")}
        named = {"extra." + key if key in _AFTER else key: value for key, value in parts.items()}
        return {key: _node(value, tensors) for key, value in {**named, **rest}.items()}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        why = "%s cannot be read (%s: %s)." % (path, type(error).__name__, error)
        raise CheckpointError(why, "Use another checkpoint.") from None


def _tensors_beside(path: str) -> Dict[str, Array]:
    folder, name = os.path.split(path)
    stem = "tensors" if name == SHARED else name[: -len(".json")]
    modern, old = (os.path.join(folder, stem + ending) for ending in (".safetensors", ".pt"))
    found: Dict[str, Array] = {}
    if os.path.exists(modern):
        found = safetensors_arrays(modern)
    elif os.path.exists(old):
        found = torch_arrays(old)
    return dict(found, **_sharded(folder, "shared" if name == SHARED else "own"))


def _sharded(folder: str, half: str) -> Dict[str, Array]:
    """Tensors whose pieces several ranks have written."""
    if not os.path.isdir(os.path.join(folder, "shards")):
        return {}
    from gpusched.checkpoint.ranks import shards

    found = shards.placeholders(folder, half)
    whole = OneAtATime(lambda name: found[name].whole())
    return {
        name: Array(one.dtype_name, one.shape, WIDTHS[one.dtype_name], held=whole.named(name), pieces=len(one.pieces))
        for name, one in found.items()
    }


def _framework_files(path: str, names: List[str]) -> Dict[str, Any]:
    """What Lightning or Hugging Face's Trainer keeps of its own in a checkpoint, each file under its name."""
    found: Dict[str, Any] = {}
    for name in sorted(names):
        ours = name.startswith(("tensors.", "own-")) or name == _ARGUMENTS
        if name.endswith(".safetensors") and not ours:
            found[name] = safetensors_arrays(os.path.join(path, name))
        elif name.endswith((".ckpt", ".pt", ".pth", ".bin")) and not ours:
            found[name] = _foreign_node(read_torch(os.path.join(path, name)))
    return found


def _foreign_node(value: Any) -> Any:
    """A node for what was read from a torch file."""
    if isinstance(value, Array):
        return value
    if isinstance(value, dict):
        return {key if isinstance(key, str) else "[%r]" % (key,): _foreign_node(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return Items(type(value).__name__, [_foreign_node(one) for one in value])
    if isinstance(value, Opaque):
        made = [*value.made_from, value.items] if value.items else value.made_from
        return Items(value.name, [_foreign_node(one) for one in made])
    if isinstance(value, (set, frozenset)):
        return Items(type(value).__name__, [_foreign_node(one) for one in sorted(value, key=repr)])
    if isinstance(value, type) and issubclass(value, Opaque):
        return Plain("class", value.name)
    return Plain(type(value).__name__, repr(value))


def _node(value: Any, tensors: Dict[str, Array]) -> Any:
    if isinstance(value, list):
        return Items("list", [_node(one, tensors) for one in value])
    if not isinstance(value, dict):
        return Plain(type(value).__name__, repr(value))
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: _node(one, tensors) for key, one in value.items()}
    body = value[tag]
    if tag in ("$tensor", "$sharded"):
        return tensors[body]
    if tag == "$numpy":
        return _numpy(value, tensors)
    if tag in ("$dict", "$Counter"):
        return {_key(key): _node(one, tensors) for key, one in body}
    if tag in ("$tuple", "$set", "$frozenset", "$deque"):
        return Items(tag[1:], [_node(one, tensors) for one in body])
    return Plain(tag[1:], body if isinstance(body, str) else json.dumps(body))


def _key(key: Any) -> str:
    return key if isinstance(key, str) else "[%s]" % (json.dumps(key))


def _numpy(value: Dict[str, Any], tensors: Dict[str, Array]) -> Array:
    """Its bytes are in the JSON, or for a large one a tensor of bytes in the tensor file."""
    dtype, shape = str(value["dtype"]), tuple(int(one) for one in value["shape"])
    count, body = max(1, Array(dtype, shape, 1).count), value["$numpy"]
    if isinstance(body, dict):
        inner = tensors[body["$tensor"]]
        return Array(dtype, shape, inner.size // count, "numpy", inner.path, inner.offset, inner.held)
    raw = base64.b64decode(body)
    return Array(dtype, shape, len(raw) // count, "numpy", held=raw)
