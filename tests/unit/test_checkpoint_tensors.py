"""Tensors in a file: every bit, stride and sharing comes back, other readers read it, damage is noticed."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading

import pytest
import torch

from gpusched.checkpoint.disk import plan, stream, tensors
from gpusched.checkpoint.errors import CheckpointError

STANDARD = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint64", "uint32",
    "uint16", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
OTHERS = ["complex64", "complex128", "complex32", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


def raw(tensor):
    return bytes(tensors.bytes_of(tensor.contiguous()))


def through_file(tmp_path, **given):
    path = str(tmp_path / "x.safetensors")
    entry = tensors.write(path, given)
    back = tensors.read(path, entry["checksum"])
    for name, tensor in given.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(back[name]) == raw(tensor), name
    return back


def some(dtype, shape=(3, 5)):
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 2 if dtype == "bool" else 120, (*shape, kind.itemsize), generator=generator).to(
        torch.uint8
    ).view(kind).reshape(shape)  # fmt: skip


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", STANDARD + OTHERS)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    tensor = some(dtype)
    through_file(tmp_path, whole=tensor, scalar=tensor[1, 1], empty=tensor[:0], part=tensor[1:, 2:4], odd=some("bool"))
    told = tensors.header(str(tmp_path / "x.safetensors"))
    assert told["whole"] == {"dtype": dtype, "shape": [3, 5]}
    assert told["empty"] == {"dtype": dtype, "shape": [0, 5]}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_any_reader_of_safetensors_reads_all_standard_dtypes(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="needs the extra gpusched[frameworks]")
    given = {dtype: some(dtype) for dtype in STANDARD + OTHERS}
    given["turned"] = some("float32").t()
    given["scalar"], given["empty"] = torch.tensor(3.5), torch.empty(0, 2)
    path = str(tmp_path / "x.safetensors")
    tensors.write(path, given)
    read = library.load_file(path)
    for name in set(given) - set(OTHERS):
        assert read[name].dtype == given[name].dtype and read[name].shape == given[name].shape
        assert raw(read[name]) == raw(given[name])
    assert torch.equal(torch.view_as_complex(read["complex64"]), given["complex64"])


def test_what_the_library_writes_is_read(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="needs the extra gpusched[frameworks]")
    given = {"b": torch.randn(3, 2), "a": torch.arange(5), "c": torch.zeros(0)}
    library.save_file(given, str(tmp_path / "x"), metadata={"format": "pt"})
    read = tensors.read(str(tmp_path / "x"))
    assert all(torch.equal(read[name], given[name]) for name in given)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.permute(3, 1, 0, 2),
        lambda t: t[:, ::2, :, 1:3],
        lambda t: t[:, :1].to(memory_format=torch.channels_last),
        lambda t: torch.empty_strided((4, 3), (1, 9)).fill_(1.5),
    ],
    ids=["channels_last", "permuted", "gaps", "one channel", "padded"],
)
def test_strides_come_back_since_sums_depend_on_them(tmp_path, make):
    tensor = make(torch.randn(2, 4, 5, 6))
    assert through_file(tmp_path, x=tensor)["x"].stride() == tensor.stride()


def test_memory_with_several_names_is_stored_once_and_shared_again(tmp_path):
    weight = torch.randn(300, 200)
    back = through_file(tmp_path, turned=weight.t(), tied=weight, again=weight, row=weight[7], other=weight.clone())
    assert os.path.getsize(tmp_path / "x.safetensors") < 2.1 * weight.nbytes
    back["tied"][7, 3] = 99.0
    assert back["turned"][3, 7] == back["again"][7, 3] == back["row"][3] == 99.0
    assert back["other"][7, 3] == weight[7, 3]


def test_views_that_overlap_without_one_holding_the_other_have_their_values(tmp_path):
    whole = torch.randn(100)
    through_file(tmp_path, first=whole[:60], second=whole[40:], every=whole[::3])


def test_an_expanded_tensor_has_its_values(tmp_path):
    through_file(tmp_path, x=torch.randn(3, 1).expand(3, 7), y=torch.arange(10).unfold(0, 4, 1))


def test_pending_conjugation_and_negation_are_carried_out(tmp_path):
    pair = torch.randn(4, dtype=torch.complex64)
    back = through_file(tmp_path, conjugate=pair.conj().resolve_conj())
    tensors.write(str(tmp_path / "y"), {"lazy": pair.conj(), "negative": pair.conj().imag})
    lazy = tensors.read(str(tmp_path / "y"))
    assert torch.equal(lazy["lazy"], back["conjugate"]) and torch.equal(lazy["negative"], -pair.imag)


def test_parameters_and_subclasses_without_data_of_their_own_are_stored_as_tensors(tmp_path):
    class Marked(torch.Tensor):
        pass

    tensors.write(str(tmp_path / "x"), {"p": torch.nn.Parameter(torch.ones(2)), "m": torch.ones(2).as_subclass(Marked)})
    read = tensors.read(str(tmp_path / "x"))
    assert type(read["p"]) is type(read["m"]) is torch.Tensor and not read["p"].requires_grad


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.eye(3).to_sparse(), "sparse coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.nn.UninitializedParameter(), "not yet initialized"),
    ],
)
def test_a_tensor_without_bytes_of_its_own_is_refused_by_its_name(tmp_path, make, kind):
    with pytest.raises(CheckpointError, match=f"model/layer is a {kind} tensor"):
        tensors.write(str(tmp_path / "x"), {"fine": torch.ones(1), "model/layer": make()})


def test_the_checksum_is_that_of_the_file_and_the_size_too(tmp_path):
    path = tmp_path / "x"
    entry = tensors.write(str(path), {"a": torch.randn(3, 1 << 20), "b": torch.randn(700)})
    data = path.read_bytes()
    assert entry == {"size": len(data), "checksum": "sha256:" + hashlib.sha256(data).hexdigest()}


def test_the_bytes_of_every_tensor_begin_where_its_type_may(tmp_path):
    path = tmp_path / "x"
    tensors.write(str(path), {"odd": torch.ones(3, dtype=torch.uint8), "wide": torch.ones(2, dtype=torch.int64)})
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    places = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0 and places["wide"]["data_offsets"][0] % 8 == 0


def test_a_file_is_never_written_over(tmp_path):
    tensors.write(str(tmp_path / "x"), {"a": torch.ones(1)})
    with pytest.raises(FileExistsError):
        tensors.write(str(tmp_path / "x"), {"a": torch.zeros(1)})


def edit(header):
    """A file with this header and eight bytes of data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NOTED = {"__metadata__": {"gpusched": json.dumps({"a": {"stride": [1 << 60]}})}, "a": F32}
BAD = {
    "empty": b"",
    "short": b"\x01\x02",
    "too long a header": struct.pack("<Q", 1 << 40) + b"{}",
    "no table": struct.pack("<Q", 2) + b"[]",
    "no json": struct.pack("<Q", 2) + b"{,",
    "cut off": edit({"a": F32})[:-1],
    "too long": edit({"a": F32}) + b"\0",
    "unknown dtype": edit({"a": dict(F32, dtype="PICKLE")}),
    "negative shape": edit({"a": dict(F32, shape=[-2])}),
    "shape and size differ": edit({"a": dict(F32, shape=[3])}),
    "overlap": edit({"a": F32, "b": F32}),
    "missing": edit({"a": {"dtype": "F32"}}),
    "a note that does not fit": edit(NOTED),
    "an alias of nothing": edit(
        {"__metadata__": {"gpusched": '{"b": {"of": "c", "shape": [1], "stride": [1], "offset": 0}}'}, "a": F32}
    ),
    "an alias beyond the end": edit(
        {"__metadata__": {"gpusched": '{"b": {"of": "a", "shape": [9], "stride": [1], "offset": 0}}'}, "a": F32}
    ),
    "a function as dtype": edit(
        {"__metadata__": {"gpusched": '{"a": {"dtype": "load", "shape": [2]}}'}, "a": F32}
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_file_that_is_damaged_is_refused_whatever_it_says(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises((ValueError, OSError)):
        tensors.read(str(tmp_path / "x"))


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "x"
    entry = tensors.write(str(path), {"a": torch.zeros(1000)})
    with open(path, "r+b") as file:
        file.seek(-7, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(ValueError, match="checksum"):
        tensors.read(str(path), entry["checksum"])


def test_the_header_is_read_without_torch(tmp_path):
    tensors.write(str(tmp_path / "x"), {"a": torch.ones(2, 3), "b": torch.ones(1, dtype=torch.complex64)})
    program = (
        "import sys\nfrom gpusched.checkpoint.disk import tensors\nprint(tensors.header(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert "{'dtype': 'float32', 'shape': [2, 3]}" in done.stdout and "complex64" in done.stdout


def test_hashing_goes_on_without_a_thread_where_none_can_be_had(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(stream.threading.Thread, "start", refuse)
    entry = tensors.write(str(tmp_path / "x"), {"a": torch.randn(1000)})
    assert entry["checksum"] == "sha256:" + hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_a_plan_knows_the_bytes_that_will_be_written():
    weight = torch.ones(10, 10)
    made = plan.make_plan({"a": weight, "b": weight.t(), "c": torch.ones(3, dtype=torch.int64)})
    assert made.size == 400 + 24 and made.notes["b"]["of"] == "a"


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
def test_behind_the_training_the_hash_takes_a_core_of_its_own_only_where_there_are_more_than_two(
    tmp_path, monkeypatch, cores
):
    monkeypatch.setattr(stream.os, "sched_getaffinity", lambda pid: set(range(cores)))
    seen = []

    def write():
        digest = stream.Hash()
        seen.append(digest._thread is not None)
        digest.add(memoryview(b"abc"))
        seen.append(digest.close())

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert seen == [cores > 2, "sha256:" + hashlib.sha256(b"abc").hexdigest()]
