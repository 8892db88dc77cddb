"""Files of weights that others have made: which kind each is, and the table of tensors in it. Nothing in them is run.

Reads torch files (torch.load with weights_only=True), safetensors, both also in numbered pieces with an index, as
Hugging Face has them, and checkpoints of ours. What holds code (a whole model, TorchScript) is refused with a way to
convert it. Must not know anything about the model that the weights are for.
"""

import contextlib
import json
import os
import pickle
import re
from inspect import signature
from typing import Any, Dict, Iterator, List, Tuple

from gpusched.checkpoint.disk import arrays, export, inspect
from gpusched.checkpoint.errors import CheckpointError

Table = Dict[str, Any]

# Names under which trainers keep the model, the likeliest first.
_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|ema|average|rng|momentum|loss", re.IGNORECASE)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_MAGIC = (
    (b"version https://git-lfs", "is a Git LFS pointer of a few lines, not the weights themselves",
     "Fetch the real file: git lfs pull"),
    (b"\x89HDF", "is an HDF5 file (Keras, TensorFlow)", "Convert it with the program that made it."),
    (b"GGUF", "is a GGUF file of another program", "Convert it with the program that made it."),
    (b"\x1f\x8b", "is compressed (gzip)", "Unpack it first: tar xzf, or gunzip."),
    (b"\x93NUMPY", "is one numpy array", "Load it yourself and hand over a dictionary of tensors."),
)  # fmt: skip
_CONVERT = (
    "If you trust whoever made it, convert it once, where its code is installed, and use the result:\n"
    "  python -c \"import torch; m = torch.load('%s', weights_only=False); torch.save(%s, 'weights.pt')\""
)


def read_table(source: Any, part: str = "model") -> Table:
    """Name → tensor on the CPU. `source`: a path, or a state_dict. `part`: of a checkpoint of ours.

    Tensors may be mapped from the file: copy from them. Raises CheckpointError for what is no table of tensors.
    """
    if hasattr(source, "items"):
        return find_table(dict(source), "the given dictionary")
    path = os.fspath(source)
    try:
        if os.path.isdir(path):
            return _directory(path, part)
        return _file(path)
    except FileNotFoundError as error:
        missing = error.filename or path
        hint = "Check the path: it is relative to %s." % os.getcwd() if not os.path.isabs(missing) else ""
        raise CheckpointError("There is no file %s." % missing, hint or "Check the path.") from None
    except OSError as error:
        raise CheckpointError(
            "%s cannot be read (%s)." % (error.filename or path, error.strerror), "Check its permissions."
        ) from None


def _directory(path: str, part: str) -> Table:
    names = os.listdir(path)
    if inspect.SHARED in names or any(re.fullmatch(r"step-\d+(\.\d+)?", name) for name in names):
        content = inspect.read_content(_checked(path))
        wanted = "" if part == "model" and "model" not in content.shared else part
        _, table, _ = export.weights_of(content, wanted)
        return mapped(table)
    for name in (*_WHOLE, *_INDEXES):
        if name in names:
            return _file(os.path.join(path, name))
    raise CheckpointError(
        "%s holds no weights that are known by their names." % path,
        "Name the file itself. There are: %s." % (", ".join(sorted(names)[:8]) or "no files"),
    )


def _checked(path: str) -> str:
    """The good checkpoint that a directory means; one of Hugging Face's Trainer has a seal of another kind."""
    if not re.fullmatch(r"checkpoint-\d+", os.path.basename(os.path.abspath(path))):
        return inspect.newest(path)
    from gpusched.checkpoint.frameworks import sealed

    problem = sealed.problem(path)
    if problem:
        raise CheckpointError("%s cannot be used: %s." % (path, problem), "Use another checkpoint.")
    return path


def _file(path: str) -> Table:
    with open(path, "rb") as file:
        start = file.read(512)
    _refuse_what_is_no_weights(path, start)
    if path.endswith(".json"):
        return _index(path)
    if path.endswith(".safetensors") or _looks_like_safetensors(start):
        return mapped(arrays.safetensors_arrays(path))
    return find_table(_load(path), path)


def _refuse_what_is_no_weights(path: str, start: bytes) -> None:
    if not start:
        raise CheckpointError("%s is empty." % path, "Download or copy it again.")
    for magic, what, hint in _MAGIC:
        if start.startswith(magic):
            raise CheckpointError("%s %s." % (path, what), hint)
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            "%s is a web page, not weights: the download was answered with a page (a login, an error?)." % path,
            "Open it in a browser to see what it says, and download the file itself.",
        )


def _looks_like_safetensors(start: bytes) -> bool:
    return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < arrays.HEADER_LIMIT


def _index(path: str) -> Table:
    """Weights in several files, and an index that says which tensor is in which."""
    try:
        with open(path, encoding="utf-8") as file:
            places = dict(json.load(file)["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError("%s is no index of weights: it has no weight_map." % path, "Name the weights.") from None
    table: Table = {}
    for name in sorted(set(places.values())):
        if os.path.basename(str(name)) != name or str(name).endswith(".json"):
            raise CheckpointError("%s names %r, which is not a file beside it." % (path, name), "Download it again.")
        beside = os.path.join(os.path.dirname(path), name)
        if not os.path.exists(beside):
            raise CheckpointError("%s is missing; %s needs it." % (beside, os.path.basename(path)), "Download it, too.")
        table.update(_file(beside))
    absent = [name for name in places if name not in table]
    if absent:
        why = "%s promises %s, which is in none of its files." % (path, absent[0])
        raise CheckpointError(why, "Download all of them again.")
    return table


def mapped(found: Dict[str, arrays.Array]) -> Table:
    """Tensors of a safetensors file, mapped: pages are read when they are copied from, and writing leaves the file."""
    import mmap

    import torch

    maps: Dict[str, Any] = {}
    table: Table = {}
    for name, array in found.items():
        dtype = getattr(torch, array.dtype, None)
        if array.held is not None or array.count == 0 or dtype is None or array.offset % array.width:
            table[name] = export.to_torch(array)
            continue
        if array.path not in maps:
            with open(array.path, "rb") as file:
                maps[array.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(maps[array.path], dtype=dtype, count=array.count, offset=array.offset)
        table[name] = flat.reshape(array.shape)
    return table


# ---- torch files ------------------------------------------------------------------------------------------------


def _load(path: str) -> Any:
    """torch.load that takes tensors and plain values, and turns every refusal into a sentence."""
    import zipfile

    import torch

    names: List[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            convert = _CONVERT.replace("torch.load('%s', weights_only=False)", "torch.jit.load('%s')")
            raise CheckpointError(
                "%s is a TorchScript program, which holds code; it has not been run." % path,
                convert % (path, "m.state_dict()"),
            )
    try:
        mapping = {"mmap": True} if names and "mmap" in signature(torch.load).parameters else {}  # torch 2.1
        with _harmless(torch):
            return torch.load(path, map_location="cpu", weights_only=True, **mapping)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error), names) from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        why = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(
            "%s is not a whole torch file (%s)." % (path, why), "It may be cut short: download or copy it again."
        ) from None


@contextlib.contextmanager
def _harmless(torch: Any) -> Iterator[None]:
    """Plain data that trainers like to add to their files (numpy numbers, argparse's options) may be read, too."""
    import argparse

    allowed: List[Any] = [argparse.Namespace]
    with contextlib.suppress(ImportError):
        import numpy

        core = (getattr(numpy, "_core", None) or numpy.core).multiarray
        allowed += [core.scalar, core._reconstruct, numpy.ndarray, numpy.dtype]
        for old in ("numpy.core.multiarray", "numpy._core.multiarray"):  # by the names of numpy 1 and 2
            allowed += [(core.scalar, old + ".scalar"), (core._reconstruct, old + "._reconstruct")]
        allowed += [type(numpy.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        yield
        return
    with torch.serialization.safe_globals(allowed):
        yield


def _refusal(path: str, message: str, names: List[str]) -> CheckpointError:
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"[Tt]ype ([\w.]+)", message)
    if found is None:
        return CheckpointError(
            "%s is not a file of weights that can be read." % path, "It may be cut short, or of another program."
        )
    whole = _outermost(path, names) not in ("", "collections.OrderedDict")
    if whole:
        what = "%s is a whole pickled model (%s), not weights. Loading it would run code; it has not been run."
        return CheckpointError(what % (path, _outermost(path, names)), _CONVERT % (path, "m.state_dict()"))
    what = "%s holds more than weights: %s. Loading that could run code; it has not been run."
    return CheckpointError(what % (path, found[1]), _CONVERT % (path, "m['state_dict']"))


def _outermost(path: str, names: List[str]) -> str:
    """The class of the object that a zip file of torch holds; empty if that is a plain value, or cannot be told."""
    import pickletools
    import zipfile

    try:
        if not names:
            return ""
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in names if name.endswith("/data.pkl")))
        texts: List[str] = []
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if operation.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if operation.name.startswith("EMPTY_") or operation.name in ("MARK", "NONE"):
                return ""
            if isinstance(argument, str):
                texts.append(argument)
    except (ValueError, StopIteration, OSError, KeyError, zipfile.BadZipFile):
        pass
    return ""


# ---- where in a file the weights are ----------------------------------------------------------------------------


def find_table(value: Any, where: str) -> Table:
    """The model's tensors in what a trainer has saved: a state_dict, or one under a name that trainers give it.

    Raises CheckpointError, listing what there is, if it cannot be told which of several it is.
    """
    tables = dict(_tables(value, (), 3))
    if () in tables:
        return tables[()]
    for name in _NESTS:
        found = [path for path in tables if path[0] == name]
        if found:
            return tables[min(found, key=lambda path: (len(path), _rank(path)))]
    likely = [path for path in tables if not any(map(_NOT_WEIGHTS.search, path))]
    if len(likely) == 1:
        return tables[likely[0]]
    keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
    raise CheckpointError(
        "It cannot be told where in %s the weights are; it holds: %s." % (where, keys or "nothing"),
        "Take them out and hand them over: load_weights(model, torch.load(path, weights_only=True)['…']).",
    )


def _rank(path: Tuple[str, ...]) -> Tuple[int, ...]:
    return tuple(_NESTS.index(name) if name in _NESTS else len(_NESTS) for name in path)


def _tables(value: Any, path: Tuple[str, ...], depth: int) -> Iterator[Tuple[Tuple[str, ...], Table]]:
    if not isinstance(value, dict) or not value:
        return
    if _is_table(value):
        yield path, {str(name): one for name, one in value.items()}
    elif depth:
        for key, one in value.items():
            yield from _tables(one, (*path, str(key)), depth - 1)


def _is_table(value: Dict[Any, Any]) -> bool:
    """Mostly tensors, by names. Some modules keep values of another kind among them (`_extra_state`)."""
    tensors = 0
    for name, one in value.items():
        if not isinstance(name, str):
            return False
        if is_tensor(one):
            tensors += 1
        elif isinstance(one, (dict, list, tuple)) and not name.endswith("_extra_state"):
            return False
    return tensors > 0 and 2 * tensors >= len(value)


def is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "untyped_storage")
