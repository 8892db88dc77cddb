"""Comparing two checkpoints bit for bit, in both formats."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from checkpoint_trees import a_tree, put, put_old

from gpusched.checkpoint.disk import details
from gpusched.checkpoint.disk.compare import compare
from gpusched.checkpoint.errors import CheckpointError


@pytest.fixture(params=[put, put_old], ids=["format 2", "format 1"])
def save(request):
    return request.param


def found(tmp_path, save, one, other):
    return compare(save(tmp_path / "a", one).path, save(tmp_path / "b", other).path)


def changed(path, value, tree=None):
    """A tree with one place replaced."""
    tree = copy.deepcopy(tree or a_tree())
    *way, last = path
    inner = tree
    for key in way:
        inner = inner[key]
    inner[last] = value
    return tree


def test_a_checkpoint_equals_itself_and_its_copy(tmp_path, save):
    assert found(tmp_path, save, a_tree(), a_tree()) == []


def test_both_formats_of_the_same_state_are_equal(tmp_path):
    assert compare(put(tmp_path / "a", a_tree()).path, put_old(tmp_path / "b", a_tree()).path) == []


def test_a_tensor_tells_how_many_elements_differ_where_first_and_by_how_much(tmp_path, save):
    weight = torch.arange(12.0).reshape(3, 4)
    weight[1, 2], weight[2, 3] = 6.5, 13.0
    (one,) = found(tmp_path, save, a_tree(), a_tree(weight=weight))
    assert (one.place, one.what) == ("model/0.weight", "numbers")
    assert one.detail == "2 of 12 elements differ; first [1, 2]: 6 and 6.5; largest difference 2"


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64],
)
def test_every_kind_of_number_can_be_compared(tmp_path, save, dtype):
    one, other = torch.zeros(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    other[3] = 1
    (difference,) = found(tmp_path, save, a_tree(weight=one), a_tree(weight=other))
    assert "1 of 5 elements differ; first [3]" in difference.detail


def test_bits_count_and_not_values(tmp_path, save):
    same = torch.tensor([math.nan, math.inf, -0.0])
    assert found(tmp_path / "1", save, a_tree(weight=same), a_tree(weight=same.clone())) == []
    (zero,) = found(tmp_path / "2", save, a_tree(weight=torch.tensor([0.0])), a_tree(weight=torch.tensor([-0.0])))
    assert "first [0]: 0 and -0" in zero.detail
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.5, math.nan])
    (nan,) = found(tmp_path / "3", save, a_tree(weight=one), a_tree(weight=other))
    assert "largest difference 0.5; 1 finite on one side only" in nan.detail


def test_shapes_and_kinds_are_told_before_numbers(tmp_path, save):
    (shape,) = found(tmp_path / "1", save, a_tree(), a_tree(weight=torch.zeros(4, 3)))
    assert (shape.what, shape.detail) == ("shape", "[3, 4] and [4, 3]")
    (dtype,) = found(tmp_path / "2", save, a_tree(), a_tree(weight=torch.zeros(3, 4).double()))
    assert (dtype.what, dtype.detail) == ("dtype", "float32 and float64")


def test_a_tensor_in_another_memory_layout_is_the_same_tensor(tmp_path, save):
    square = torch.arange(16.0).reshape(4, 4)
    assert found(tmp_path, save, a_tree(weight=square), a_tree(weight=square.t().contiguous().t())) == []


def test_what_one_side_lacks_is_named(tmp_path, save):
    less = a_tree()
    del less["parts"]["model"]["0.bias"], less["values"]["best"]
    first, second = found(tmp_path, save, a_tree(), less)
    assert str(first) == "model/0.bias is only in the first (float32 [3])"
    assert str(second) == "values/best is only in the first (float 0.5)"
    turned = compare(str(tmp_path / "b/step-10"), str(tmp_path / "a/step-10"))
    assert [one.what for one in turned] == ["only in the second"] * 2


@pytest.mark.parametrize(
    "one, other, what",
    [
        (1, 2, "value"),
        (1, 1.0, "kind"),
        (1, True, "kind"),
        (0.0, -0.0, "value"),
        (math.nan, math.inf, "value"),
        ("a", "b", "value"),
        ([1, 2], (1, 2), "kind"),
        ([1, 2], [1, 2, 3], "length"),
        ([1, 2], [1, 3], "value"),
        ({1: "x"}, {1: "y"}, "value"),
        ({1: "x"}, {2: "x"}, "only in the first"),
        (None, 0, "kind"),
        (b"a", b"b", "value"),
        ({3}, {4}, "value"),
    ],
)
def test_plain_values_are_compared_with_their_types(tmp_path, save, one, other, what):
    differences = found(tmp_path, save, a_tree(x=one), a_tree(x=other))
    assert differences[0].what == what
    assert differences[0].place.startswith("values/x")


def test_equal_plain_values_of_every_type_are_equal(tmp_path, save):
    values = {"nan": math.nan, "list": [1, (2, {3})], "numbers": {1: 2}, "bytes": b"x", "complex": 1j}
    assert found(tmp_path, save, a_tree(**values), a_tree(**copy.deepcopy(values))) == []


def test_a_generators_state_is_one_difference_and_not_six_hundred(tmp_path, save):
    other = changed(["rng", "python"], (3, tuple(range(1, 601)), None))
    (one,) = found(tmp_path, save, a_tree(), other)
    assert one.place == "rng/python/1"
    assert one.detail == "600 of 600 values differ; first [0]: 0 and 1"


def test_numpy_arrays_are_compared_like_tensors(tmp_path, save):
    numpy = pytest.importorskip("numpy")
    small, large = numpy.arange(4.0), numpy.zeros(40_000, dtype="int32")
    assert found(tmp_path / "1", save, a_tree(s=small, l=large), a_tree(s=small.copy(), l=large.copy())) == []
    third, spoilt = numpy.array([0.0, 1.0, 3.0, 3.0]), large.copy()
    spoilt[123] = 7
    one, other = found(tmp_path / "2", save, a_tree(s=small, l=large), a_tree(s=third, l=spoilt))
    assert (one.place, one.detail) == ("values/s", "1 of 4 elements differ; first [2]: 2 and 3")
    assert (other.place, other.detail) == ("values/l", "1 of 40000 elements differ; first [123]: 0 and 7")


def test_the_order_is_model_optimizer_position_values(tmp_path, save):
    other = changed(["values", "best"], 0.25, a_tree(step=11, weight=torch.zeros(3, 4)))
    other["parts"]["optimizer"]["groups"][0]["lr"] = 0.2
    other["parts"]["ema"], other["parts"]["mine"] = {"x": 1}, {"y": 1}
    places = [one.place for one in found(tmp_path, save, a_tree(), other)]
    assert places == ["model/0.weight", "optimizer/groups/0/lr", "ema", "mine", "position/steps", "values/best"]


def test_how_long_attempts_took_is_no_difference_but_a_users_history_is(tmp_path):
    one, other = {**a_tree(), "history": {"seconds": 1.0}}, {**a_tree(), "history": {"seconds": 2.0}}
    one["parts"]["history"], other["parts"]["history"] = {"loss": [1.0]}, {"loss": [2.0]}
    (difference,) = compare(put(tmp_path / "a", one).path, put(tmp_path / "b", other).path)
    assert difference.place == "extra.history/loss"


def test_what_belongs_to_a_rank_says_so(tmp_path):
    own = [{"values": {"seen": rank}, "parts": {"metrics": {"total": torch.zeros(2)}}} for rank in range(3)]
    other = copy.deepcopy(own)
    other[1]["values"]["seen"], other[2]["parts"]["metrics"]["total"][1] = 7, 1.0
    found = compare(put(tmp_path / "a", a_tree(), own=own).path, put(tmp_path / "b", a_tree(), own=other).path)
    assert [(one.place, one.what) for one in found] == [
        ("rank 1: values/seen", "value"),
        ("rank 2: metrics/total", "numbers"),
    ]
    (ranks,) = compare(put(tmp_path / "c", a_tree(), own=own[:2]).path, put(tmp_path / "d", a_tree(), own=own).path)
    assert str(ranks) == "ranks: 2 rank(s) saved the first and 3 the second"


def test_large_tensors_are_read_in_pieces(tmp_path, save, monkeypatch):
    monkeypatch.setattr(details, "PIECE", 4096)
    one = torch.arange(10_000.0)
    other = one.clone()
    other[[1023, 1024, 9_999]] += 0.5
    (difference,) = found(tmp_path, save, a_tree(weight=one), a_tree(weight=other))
    assert difference.detail.startswith("3 of 10000 elements differ; first [1023]: 1023 and 1023.5;")


def test_without_torch_the_place_is_found_all_the_same(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    weight[2, 1] = 0.0
    a, b = put(tmp_path / "a", a_tree()).path, put(tmp_path / "b", a_tree(weight=weight)).path
    program = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from gpusched.checkpoint.disk.compare import compare\n"
        "print(compare(*sys.argv[1:])[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, a, b], capture_output=True, text=True, timeout=60)
    assert "1 of 12 elements differ; first [2, 1]: 0x00001041 and 0x00000000" in done.stdout, done.stderr


def test_what_is_no_checkpoint_is_said_so(tmp_path):
    path = put(tmp_path, a_tree()).path
    with pytest.raises(CheckpointError, match="is not a directory"):
        compare(path, str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        compare(path, str(tmp_path))
    (tmp_path / "step-10" / "tensors.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        compare(path, path)
