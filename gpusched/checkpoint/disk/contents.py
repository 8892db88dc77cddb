"""The data files of a checkpoint: `state.json` (everything but tensors) and `tensors.pt` (absent if there are none).

tensors.pt is read with torch.load(weights_only=True) onto the CPU, whatever device it was saved on; loading into the
registered objects copies to the device they are on. Must not read a file that has not been checked (files.examine).
"""

import json
import os
from typing import Any, Dict, Tuple

from gpusched.checkpoint.disk.plain import decode, encode

STATE, TENSORS = "state.json", "tensors.pt"


def write(folder: str, tree: Dict[str, Any]) -> None:
    """Write a tree of values into a folder. Raises CheckpointError for what cannot be stored, OSError from the disk."""
    plain, tensors = encode_all(tree)
    text = json.dumps(plain, allow_nan=False)
    with open(os.path.join(folder, STATE), "w", encoding="utf-8") as file:
        file.write(text)
    if tensors:
        import torch

        with open(os.path.join(folder, TENSORS), "wb") as file:
            _save(torch, tensors, file)


def encode_all(tree: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """(JSON, table of tensors). Raises CheckpointError, naming its place, for what cannot be stored."""
    tensors: Dict[str, Any] = {}
    parts = {"parts/" + key: value for key, value in tree.get("parts", {}).items()}
    rest = {key: value for key, value in tree.items() if key != "parts"}
    plain = {key: encode(value, tensors, key.replace("parts/", "")) for key, value in {**rest, **parts}.items()}
    return plain, tensors


def _save(torch: Any, tensors: Dict[str, Any], file: Any) -> None:
    """torch hides a full disk behind a RuntimeError of its zip writer; the OSError below it is what to tell."""
    guard = _Remembering(file)
    try:
        torch.save(tensors, guard)
    except RuntimeError as error:
        raise guard.failed or error from None


class _Remembering:
    """A file that remembers the first OSError of its writes."""

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


def read(folder: str) -> Dict[str, Any]:
    """The tree that was written. Raises OSError, ValueError or whatever torch.load raises for a damaged file."""
    with open(os.path.join(folder, STATE), encoding="utf-8") as file:
        tree = json.load(file)
    tensors: Dict[str, Any] = {}
    path = os.path.join(folder, TENSORS)
    if os.path.exists(path):
        import torch

        tensors = torch.load(path, map_location="cpu", weights_only=True)
    whole: Dict[str, Any] = {"parts": {}}
    for key, value in tree.items():
        into, name = (whole["parts"], key[len("parts/") :]) if key.startswith("parts/") else (whole, key)
        into[name] = decode(value, tensors)
    return whole
