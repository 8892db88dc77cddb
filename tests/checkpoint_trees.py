"""Checkpoints in both formats, for tests of what reads them: the old one by hand, today's by the library."""

import hashlib
import json
from pathlib import Path

import torch

from gpusched.checkpoint.disk import contents, files, tensors
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


def put_old(directory, tree, step=10, **about):
    """A checkpoint of format 1, as the first version wrote it."""
    folder, tensors = Path(directory) / f"step-{step}", {}
    folder.mkdir(parents=True)
    flat = {**{k: v for k, v in tree.items() if k != "parts"}, **{"parts/" + k: v for k, v in tree["parts"].items()}}
    plain = {key: encode(value, tensors, key.replace("parts/", "")) for key, value in flat.items()}
    (folder / "state.json").write_text(json.dumps(plain))
    torch.save(tensors, folder / "tensors.pt")
    data = {path.name: path.read_bytes() for path in folder.iterdir()}
    entries = {k: {"size": len(v), "checksum": "sha256:" + hashlib.sha256(v).hexdigest()} for k, v in data.items()}
    told = {"epoch": 1, "batch": 2, "environment": {"torch": "2.13.0"}, "created_at": 1_790_000_000.0, "seconds": 0.25}
    manifest = {**told, **about, "format": 1, "step": step, "files": entries}
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": "sha256:" + seal}))
    return files.examine(str(folder))


def put(directory, tree, step=10, ranks=1, own=None, **about):
    """A checkpoint of format 2; `own` gives each rank's private tree (default: values and generators of `tree`)."""
    shared = {key: value for key, value in tree.items() if key not in ("values", "rng")}
    mine = {key: tree[key] for key in ("values", "rng") if key in tree}
    told = {"epoch": 1, "batch": 2, "environment": {"torch": "2.13.0", "python": "3.11"}, **about}
    with files.Draft(str(directory)) as draft:
        entries = contents.write_shared(draft.folder, {"shared": shared})
        for rank, one in enumerate(own or [{**mine, "parts": {}}] * ranks):
            entries.update(contents.write_own(draft.folder, rank, {"shared": {}, "own": one}))
        return draft.seal(step, entries, told)


def put_sharded(directory, whole, ranks, step=10):
    """A checkpoint of format 2 whose model has one tensor, `w`, in pieces of several ranks along dimension 0."""
    dtype = str(whole.dtype).split(".")[1]
    with files.Draft(str(directory)) as draft:
        tree = {"shared": {"parts": {"model": {}}}, "own": {}}
        entries = contents.write_shared(draft.folder, tree)
        for rank in range(ranks):
            entries.update(contents.write_own(draft.folder, rank, tree))
        (Path(draft.folder) / "shards").mkdir()
        state = {"parts": {"model": {"w": {"$sharded": "model/w"}}}}
        written = {"state.json": json.dumps(state).encode()}
        begin = 0
        for rank, piece in enumerate(torch.chunk(whole, ranks)):
            place = {"offsets": [begin, 0], "sizes": list(piece.shape)}
            about = {"shape": list(whole.shape), "dtype": dtype, "placements": ["S0"], "piece": place}
            written[f"shards/shared-{rank}.json"] = json.dumps({"model/w": about}).encode()
            name = f"shards/shared-{rank}.safetensors"
            entries[name] = tensors.write(str(Path(draft.folder) / name), {"model/w": piece.contiguous()})
            begin += len(piece)
        for name, data in written.items():
            (Path(draft.folder) / name).write_bytes(data)
            entries[name] = {"size": len(data), "checksum": "sha256:" + hashlib.sha256(data).hexdigest()}
        return draft.seal(step, entries, {"epoch": 0, "batch": 0})


def spoil(path):
    """Flip a bit near the end of a file; its size stays."""
    data = bytearray(Path(path).read_bytes())
    data[-2] ^= 1
    Path(path).write_bytes(data)


def digest_of(folder):
    """One hash of every file below a folder."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()
