"""Copies of the state in host memory: right whatever happens to the tensors afterwards, and quick the second time."""

import os

import pytest
import torch

from gpusched.checkpoint.disk import host_memory, snapshot
from gpusched.checkpoint.disk.plan import make_plan
from gpusched.checkpoint.disk.snapshot import Arena, NoRoom


def state():
    weight = torch.randn(300, 400)
    return {
        "weight": weight,
        "turned": weight.t(),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gaps": torch.randn(50, 50)[:, ::3],
        "wide": torch.randn(3, 1).expand(3, 9),
        "half": torch.randn(7).bfloat16(),
        "yes": torch.tensor(True),
        "none": torch.empty(0, 4),
        "pair": torch.randn(3, dtype=torch.complex128),
        "large": torch.randn(20 << 20),
    }


def test_a_copy_stays_as_it_was_when_training_goes_on():
    tensors = state()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    arena = Arena()
    (copy,) = arena.copy([make_plan(tensors)])
    for name in ("weight", "last", "gaps", "half", "yes", "pair", "large"):
        tensors[name].zero_()
    for name, tensor in copy.stored.items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
    assert copy.stored["last"].stride() == tensors["last"].stride()
    assert "turned" not in copy.stored and copy.notes["turned"]["of"] == "weight"


def test_the_memory_is_used_again_and_grows_when_the_state_does():
    arena = Arena()
    small, large = make_plan({"a": torch.ones(1000)}), make_plan({"a": torch.ones(2 << 20)})
    (first,) = arena.copy([small])
    where, size = first.stored["a"].data_ptr(), arena.size
    (second,) = arena.copy([small])
    assert second.stored["a"].data_ptr() == where and arena.size == size
    (third,) = arena.copy([large])
    assert arena.size > size and torch.equal(third.stored["a"], torch.ones(2 << 20))


def test_what_was_reserved_before_is_there_for_the_first_copy():
    arena, plan = Arena(), make_plan({"a": torch.ones(1 << 20)})
    arena.reserve([plan])
    size = arena.size
    arena.copy([plan])
    assert arena.size == size
    arena.close()
    assert arena.size == 0


def test_several_plans_are_copied_side_by_side():
    arena = Arena()
    one, other = arena.copy([make_plan({"a": torch.ones(5)}), make_plan({"a": torch.zeros(5)})])
    assert one.stored["a"].sum() == 5 and other.stored["a"].sum() == 0


def test_a_state_that_does_not_fit_into_memory_is_refused_before_anything_is_taken(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 1 << 20)
    with pytest.raises(NoRoom, match=r"needs \d+ MiB of memory, and 1 MiB are left"):
        Arena().copy([make_plan({"a": torch.ones(1 << 20)})])


def test_more_memory_than_there_is_is_refused_where_nothing_tells_how_much_there_is(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: None)
    monkeypatch.setattr(snapshot, "_size", lambda tensor: 1 << 62)
    with pytest.raises(NoRoom, match="needs"):
        Arena().copy([make_plan({"a": torch.ones(1)})])


def test_pages_of_the_arena_are_not_shared_with_forked_processes():
    """Else a data-loader worker would make the next copy pay for new pages, as a first one does."""
    arena, plan = Arena(), make_plan({"a": torch.ones(1 << 20)})
    (copy,) = arena.copy([plan])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if copy.stored["a"][-1].item() == 0 else 1)  # nothing that would need threads of torch
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert copy.stored["a"].sum() == 1 << 20


def test_memory_is_split_among_threads_without_gaps(monkeypatch):
    monkeypatch.setattr(snapshot, "_SHARE", 1000)
    tensors = {str(n): torch.randint(0, 255, (n * 37,), dtype=torch.uint8) for n in range(1, 60)}
    (copy,) = Arena().copy([make_plan(tensors)])
    assert all(torch.equal(copy.stored[name], tensor) for name, tensor in tensors.items())


def test_the_least_of_all_limits_on_memory_counts(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert host_memory.available(str(tmp_path)) is None
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:      90 kB\n")
    assert host_memory.available(str(tmp_path)) == 90 << 10
    put("proc/self/cgroup", "0::/outer/inner\n")
    put("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    put("sys/fs/cgroup/outer/inner/memory.current", "1000\n")
    assert host_memory.available(str(tmp_path)) == 90 << 10
    put("sys/fs/cgroup/outer/memory.max", "50000\n")
    put("sys/fs/cgroup/outer/memory.current", "40000\n")
    put("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 2000\n")
    assert host_memory.available(str(tmp_path)) == 12000
    put("proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n")
    put("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n")
    put("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "9\n")
    assert host_memory.available(str(tmp_path)) == 90 << 10
