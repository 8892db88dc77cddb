"""One process that plays every rank of a run in turn: for code that needs a mesh and talks to nobody.

torch's fake process group answers every collective at once, without a value; so what is tested here cannot depend on
one.
"""

import contextlib
import itertools

import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextlib.contextmanager
def as_rank(rank, size):
    """Inside, this process is that rank."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


_numbers = itertools.count()


def make_mesh(*shape):
    """A mesh of CPU ranks, unlike all earlier ones: torch caches layouts by mesh, and not by rank."""
    return init_device_mesh("cpu", shape, mesh_dim_names=[f"d{next(_numbers)}" for _ in shape])
