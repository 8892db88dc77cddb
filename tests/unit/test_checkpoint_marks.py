"""Marks of a trace are equal for equal values, and different for values that differ in one bit."""

import random
from collections import OrderedDict, namedtuple

import pytest

from gpusched.checkpoint.marks import global_generators, mark, size_of

torch = pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
numpy = pytest.importorskip("numpy", reason="needs the extra gpusched[torch]")
Pair = namedtuple("Pair", "x y")


class Batch:
    def __init__(self, value):
        self.value = value


def test_equal_values_have_equal_marks_and_others_do_not():
    values = [
        None, True, 1, 1.0, "1", b"1", 0.1, -0.0, 0.0, float("nan"), [1, 2], (1, 2), [2, 1], {"a": 1}, {"a": 2}, {1, 2},
        Pair(1, 2), torch.ones(3), torch.ones(3, dtype=torch.float64), torch.ones(1, 3), torch.ones(3).bfloat16(),
        numpy.ones(3), numpy.float32(1), Batch(1), Batch(2), random.Random(1), random.Random(2), torch.ones(0),
        torch.Generator().manual_seed(3), numpy.random.default_rng(3), torch.tensor([1 + 2j]),
        torch.ones(2).to_sparse(),
        {"nested": [torch.zeros(2), {"deep": Batch(torch.zeros(1))}]},
        {"nested": [torch.zeros(2), {"deep": Batch(torch.ones(1))}]},
    ]  # fmt: skip
    marks = [mark(value) for value in values]
    assert marks == [mark(value) for value in values]
    assert len(set(marks)) == len(values)
    assert mark(OrderedDict(b=1, a=2)) == mark(OrderedDict(a=2, b=1)) and len(marks[0]) == 12


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "uint8"])
@pytest.mark.parametrize("place", [0, 77777, -1])
def test_one_flipped_bit_in_a_large_tensor_is_noticed(kind, place):
    big = torch.zeros(300_003, dtype=getattr(torch, kind))
    before = mark(big)
    view = torch.zeros(300_010, dtype=big.dtype)[7:]  # the same numbers, elsewhere in memory
    assert mark(view) == before
    big.view(torch.uint8)[place] = 1
    assert mark(big) != before


def test_global_generators_are_marked_without_being_drawn_from():
    torch.manual_seed(1)
    random.seed(1)
    before = global_generators()
    assert before == global_generators() and set(before) >= {"python", "numpy", "torch"}
    random.random()
    after = global_generators()
    assert after["python"] != before["python"] and after["torch"] == before["torch"]


def test_the_size_of_a_tree_is_that_of_its_tensors():
    assert size_of({"a": [torch.zeros(10), 3], "b": torch.zeros(2, dtype=torch.float64)}) == 56
