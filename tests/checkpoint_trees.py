"""Checkpoints made by hand, in both formats, for tests of what reads them."""

import hashlib
import json
from pathlib import Path

import torch

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.plain import encode

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8",
         torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.complex64: "C64"}  # fmt: skip


def a_tree(step=10, weight=None, **values):
    """What a small run of one process holds, as a format 1 tree."""
    weight = torch.arange(12.0).reshape(3, 4) if weight is None else weight
    return {
        "position": {"steps": step, "epoch": 1, "batch": 2},
        "values": {"best": 0.5, **values},
        "rng": {"python": (3, tuple(range(600)), None)},
        "parts": {
            "model": {"0.weight": weight, "0.bias": torch.zeros(3)},
            "optimizer": {"state": {"0.weight": {"exp_avg": torch.full((3, 4), 0.25)}}, "groups": [{"lr": 0.1}]},
        },
    }  # fmt: skip


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist())
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def _encoded(tree):
    tensors = {}
    flat = {**{k: v for k, v in tree.items() if k != "parts"}, **{"parts/" + k: v for k, v in tree["parts"].items()}}
    return {key: encode(value, tensors, key.replace("parts/", "")) for key, value in flat.items()}, tensors


def put_old(directory, tree, step=10):
    """A checkpoint of format 1."""

    def write(folder):
        plain, tensors = _encoded(tree)
        (Path(folder) / "state.json").write_text(json.dumps(plain))
        torch.save(tensors, Path(folder) / "tensors.pt")

    return files.publish(str(directory), step, write, {"epoch": 1, "batch": 2, "environment": {"torch": "2.13.0"}})


def put(directory, tree, step=10, ranks=1, own=None, **about):
    """A checkpoint of format 2; `own` gives each rank's private tree (default: values and generators of `tree`)."""
    private = ("values", "rng")
    shared = {key: value for key, value in tree.items() if key not in private}
    mine = own or [{**{key: tree[key] for key in private if key in tree}, "parts": {}}] * ranks

    pieces = [("state", "tensors", shared), *((f"own-{rank}", f"own-{rank}", one) for rank, one in enumerate(mine))]

    def write(folder):
        for stem, table, part in pieces:
            plain, tensors = _encoded(part)
            (Path(folder) / f"{stem}.json").write_text(json.dumps(plain))
            if tensors:
                write_safetensors(Path(folder) / f"{table}.safetensors", tensors)

    told = {"epoch": 1, "batch": 2, "environment": {"torch": "2.13.0", "python": "3.11"}, **about}
    return files.publish(str(directory), step, write, told)


def digest_of(folder):
    """One hash of every file below a folder."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()
