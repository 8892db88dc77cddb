"""What may be stored comes back with its own type and bits; anything else is refused by name."""

import datetime
import math
import struct
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy
import pytest
import torch

from gpusched.checkpoint.disk import contents
from gpusched.checkpoint.errors import CheckpointError


def through_disk(tmp_path, value):
    folder, tree = tempfile.mkdtemp(dir=tmp_path), {"shared": {}, "own": {"value": value}}
    contents.write_own(folder, 0, tree)
    contents.write_shared(folder, tree)
    tree, owners = contents.read(folder)
    assert owners == 1
    return tree["own"]["value"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**200),
        "text ✓",
        0.1,
        -0.0,
        5e-324,
        math.inf,
        -math.inf,
        b"\x00\xff",
        1 + 2j,
        (1, (2, [3])),
        {1, 2},
        frozenset("ab"),
        {"a": {"b": [1]}},
        {1: "one", (2, 3): "pair"},
        {"$tuple": "not a tuple"},
        Counter({30: 1, 60: 2}),
        deque([1, 2], maxlen=5),
        torch.float16,
        torch.device("cuda:1"),
    ],
)
def test_plain_values_come_back_as_they_were(tmp_path, value):
    back = through_disk(tmp_path, value)
    assert back == value and type(back) is type(value)
    if type(value) is float:
        assert struct.pack("d", back) == struct.pack("d", value)
    if type(value) is deque:
        assert back.maxlen == value.maxlen


def test_nan_and_ordered_dictionaries_come_back(tmp_path):
    assert math.isnan(through_disk(tmp_path, math.nan))
    assert list(through_disk(tmp_path, OrderedDict([("b", 1), ("a", 2)]))) == ["b", "a"]
    assert through_disk(tmp_path, torch.Size([2, 3])) == (2, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "uint8", "bool", "complex64"])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = (torch.randn(3, 4) * 10).to(getattr(torch, dtype))
    back = through_disk(tmp_path, {"t": tensor, "scalar": tensor[0, 0], "empty": tensor[:0], "turned": tensor.t()})
    assert back["t"].dtype == tensor.dtype and torch.equal(back["t"], tensor)
    assert torch.equal(back["scalar"], tensor[0, 0]) and back["empty"].shape == (0, 4)
    assert torch.equal(back["turned"], tensor.t())


@pytest.mark.parametrize(
    "array",
    [numpy.arange(6).reshape(2, 3), numpy.float64(0.1), numpy.bool_(True), numpy.zeros(20_000), numpy.array("word")],
    ids=["small", "scalar", "bool", "large", "text"],
)
def test_numpy_arrays_and_scalars_come_back(tmp_path, array):
    back = through_disk(tmp_path, array)
    assert back.dtype == array.dtype and back.shape == array.shape and type(back) is type(array)
    assert numpy.array_equal(back, array)


def test_a_parameter_is_stored_as_the_tensor_it_is(tmp_path):
    back = through_disk(tmp_path, torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor and not back.requires_grad


@pytest.mark.parametrize(
    "value", [Path("x"), datetime.date(2026, 1, 1), defaultdict(list), object(), print, numpy.array([object()])]
)
def test_what_cannot_be_stored_safely_is_refused_by_its_name(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"value/config/1"):
        through_disk(tmp_path, {"config": [1, value]})


def test_a_large_array_that_cannot_be_written_to_is_stored(tmp_path):
    array = numpy.arange(20_000)
    array.flags.writeable = False
    assert numpy.array_equal(through_disk(tmp_path, array), array)
