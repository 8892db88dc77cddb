"""Taking the weights out of a checkpoint for deployment: a plain state_dict, as a torch file or as safetensors.

What comes out needs nothing of gpusched: torch.load(weights_only=True), safetensors' load_file, or any other program.
The file is whole or not there: it is written under another name, flushed, and renamed. A safetensors file is copied
from the checkpoint in pieces, without torch. Must not check that the checkpoint is good: inspect.newest does.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Tuple

from gpusched.checkpoint.disk.arrays import NAMES, Array
from gpusched.checkpoint.disk.inspect import Content, read_content
from gpusched.checkpoint.errors import CheckpointError
from gpusched.rundir import sync_directory

TORCH, SAFETENSORS = (".pt", ".pth", ".bin"), (".safetensors",)
FRAMEWORK_FILES = ("lightning.ckpt", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_PIECE = 16 << 20
# Where averaged weights keep the model's own names: torch's AveragedModel, ema-pytorch, and bare.
_AVERAGED = ("module.", "ema_model.", "ema.", "")


@dataclass(frozen=True)
class Exported:
    """What was written. `left_out` names what is in the part and is no tensor."""

    path: str
    part: str
    tensors: int
    numbers: int
    size: int  # bytes of the file
    left_out: Tuple[str, ...] = ()


def export(checkpoint: str, to: str, part: str = "", ema: bool = False, force: bool = False) -> Exported:
    """Write the tensors of one part of a checkpoint directory into a file, under the names that the model gives them.

    part: a registered object, such as `model` or `model.encoder`; default: the only model. With `ema` the averaged
    weights are written under the model's names. `to` ends in .pt, .pth, .bin or .safetensors; a file that exists is
    replaced only with `force`. Raises CheckpointError, saying what can be had instead; OSError.
    """
    ending = os.path.splitext(to)[1].lower()
    if ending not in TORCH + SAFETENSORS:
        raise CheckpointError(
            "%s has an ending that says no format." % to, "Write for example weights.pt or weights.safetensors."
        )
    if os.path.exists(to) and not force:
        raise CheckpointError("%s exists already." % to, "Choose another name, or replace it with --force.")
    content = read_content(checkpoint)
    name, table, left_out = weights_of(content, part, ema)
    with _appearing(to) as file:
        _write_safetensors(file, table) if ending in SAFETENSORS else _write_torch(file, table)
    numbers = sum(array.count for array in table.values())
    return Exported(to, name, len(table), numbers, os.path.getsize(to), tuple(left_out))


def weights_of(content: Content, part: str = "", ema: bool = False) -> Tuple[str, Dict[str, Array], List[str]]:
    """(the part's name, its tensors by name, the names of what is no tensor). See `export`."""
    parts = dict(content.shared)
    for tree in content.own.values():
        parts.update({key: tree[key] for key in tree if key not in parts})
    if "model" not in parts and content.manifest.get("framework"):
        parts.update(_of_framework(content))
    name = part or _only(parts, "model")
    table, left_out = _table(parts, name)
    if ema:
        averaged = _only(parts, "ema")
        table, name = _averaged(_table(parts, averaged)[0], table, averaged), averaged
    return name, table, left_out


def _of_framework(content: Content) -> Dict[str, Any]:
    """The model in the file that Lightning or Hugging Face's Trainer keeps in its checkpoint."""
    from gpusched.checkpoint import foreign

    for name in FRAMEWORK_FILES:
        path = os.path.join(content.path, name)
        if os.path.exists(path):
            table = {key: one for key, one in foreign.read_table(path).items() if foreign.is_tensor(one)}
            return {"model": {key: _held(one) for key, one in table.items()}}
    return {}


def _held(tensor: Any) -> Array:
    return Array(str(tensor.dtype).split(".")[1], tuple(tensor.shape), tensor.element_size(), held=tensor.contiguous)


def _only(parts: Dict[str, Any], role: str) -> str:
    """The one part of a role. Raises CheckpointError if there are none or several."""
    found = [key for key in parts if key.split(".")[0] == role]
    if len(found) == 1 or role in parts:
        return role if role in parts else found[0]
    if not found:
        why = "The checkpoint has no part that is called %s." % role
    else:
        why = "The checkpoint has %d parts that are called %s: %s." % (len(found), role, ", ".join(found))
    raise CheckpointError(why, _choices(parts))


def _choices(parts: Dict[str, Any]) -> str:
    tables = [key for key in parts if isinstance(parts[key], dict) and _has_tensors(parts[key])]
    return "Choose with --part: %s." % (", ".join(tables) or "there is none with tensors")


def _has_tensors(node: Dict[str, Any]) -> bool:
    return any(isinstance(one, Array) for one in node.values())


def _table(parts: Dict[str, Any], name: str) -> Tuple[Dict[str, Array], List[str]]:
    node = parts.get(name)
    if node is None:
        raise CheckpointError("The checkpoint has no part %s." % name, _choices(parts))
    if not isinstance(node, dict) or not _has_tensors(node):
        raise CheckpointError("%s is no table of tensors." % name, _choices(parts))
    return (
        {key: one for key, one in node.items() if isinstance(one, Array) and one.kind == "tensor"},
        [key for key, one in node.items() if not isinstance(one, Array) or one.kind != "tensor"],
    )


def _averaged(table: Dict[str, Array], model: Dict[str, Array], part: str) -> Dict[str, Array]:
    """The averaged weights under the model's names. What is not averaged (buffers, perhaps) is the model's own."""
    best, found = "", 0
    for prefix in _AVERAGED:
        matching = sum(1 for name in model if _same(table.get(prefix + name), model[name]))
        if matching > found:
            best, found = prefix, matching
    if not found:
        raise CheckpointError(
            "%s does not hold the model's tensors by their names." % part,
            "Export it as it is with --part %s." % part,
        )
    return {name: table[best + name] if _same(table.get(best + name), model[name]) else model[name] for name in model}


def _same(one: Any, other: Array) -> bool:
    return isinstance(one, Array) and one.shape == other.shape


# ---- writing ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _appearing(path: str) -> Iterator[Any]:
    """A file that is at `path`, durable, after the block, or not at all. Others may read it as the umask says."""
    temporary = "%s.tmp-%d" % (path, os.getpid())
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(os.path.abspath(path)))


def _write_safetensors(file: Any, table: Dict[str, Array]) -> None:
    """In safetensors' own layout; {"format": "pt"} is what transformers asks for."""
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names = sorted(table, key=lambda name: -table[name].width)  # keeps every tensor aligned
    at = 0
    for name in names:
        array = table[name]
        if array.dtype not in NAMES:
            why = "%s is %s, which safetensors has no name for." % (name, array.dtype)
            raise CheckpointError(why, "Export to a .pt file instead.")
        place = [at, at + array.size]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        at += array.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for start in range(0, table[name].size, _PIECE):
            file.write(table[name].bytes_at(start, _PIECE))


def _write_torch(file: Any, table: Dict[str, Array]) -> None:
    """A state_dict as torch.save writes it. Tensors that were one in the checkpoint (tied weights) stay one."""
    try:
        import torch
    except ImportError:
        raise CheckpointError("Writing a torch file needs torch.", "Export to a .safetensors file instead.") from None
    made: Dict[Any, Any] = {}
    state = {}
    for name, array in table.items():
        key = (array.path, array.offset, array.shape, array.dtype, id(array.held) if array.held else None)
        if not array.path or key not in made:
            made[key] = to_torch(array)
        state[name] = made[key]
    guard: Any = _Remembering(file)
    try:
        torch.save(state, guard)
    except RuntimeError as error:
        raise guard.failed or error from None


def to_torch(array: Array) -> Any:
    """The tensor itself, on the CPU, in memory of its own. Raises CheckpointError if this torch lacks its dtype."""
    import torch

    dtype = getattr(torch, array.dtype, None)
    if dtype is None:
        raise CheckpointError("This torch has no %s." % array.dtype, "Update torch here.")
    if array.count == 0:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.bytes_at(0, array.size)), dtype=dtype).reshape(array.shape)


class _Remembering:
    """torch hides a full disk behind a RuntimeError of its zip writer; the OSError below it is what to tell."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.failed: Any = None

    def write(self, data: Any) -> int:
        try:
            written: int = self._file.write(data)
        except OSError as error:
            self.failed = self.failed or error
            raise
        return written

    def flush(self) -> None:
        self._file.flush()
