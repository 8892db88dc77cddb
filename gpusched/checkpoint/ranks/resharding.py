"""torch.distributed.checkpoint at work: which piece of a DTensor this rank holds, and which saved pieces fill it.

Written on top of torch; import it lazily. DCP's planners do the geometry, a StorageReader of our own the reading, so
no pickle is read and no other rank is asked. Must not write files.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.futures import Future

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sharded import Piece, Sharded


def piece_of(name: str, value: DTensor) -> Optional[Tuple[List[int], torch.Tensor]]:
    """(offsets, local tensor) of this rank's piece; None if it holds nothing of the tensor."""
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner({name: value}, is_coordinator=False)
    for item in planner.create_local_plan().items:
        data = planner.resolve_data(item)
        assert item.tensor_data is not None and isinstance(data, torch.Tensor)
        chunk = item.tensor_data.chunk
        if tuple(chunk.sizes) != tuple(data.shape):
            raise CheckpointError(
                "%s is laid out over the ranks in a way that cannot be stored: %s." % (name, value.placements),
                "Shard dimensions evenly, or register a module with another layout.",
            )
        if data.numel():
            return list(chunk.offsets), data.detach().contiguous()
    return None


def load(saved: Sharded, live: DTensor) -> DTensor:
    """A DTensor laid out like the live one, filled from the saved pieces that overlap this rank's own."""
    target = torch.empty_like(live, dtype=saved.dtype, requires_grad=False)
    assert isinstance(target, DTensor)
    _fill(saved, target)
    return target


def beside(value: Any, parameter: DTensor) -> DTensor:
    """A DTensor on the mesh of a parameter, laid out as it was saved if that fits, else in full on every rank."""
    mesh = parameter.device_mesh
    places = [_parsed(text) for text in value.placements] if isinstance(value, Sharded) else []
    fits = len(places) == mesh.ndim and None not in places
    whole = value.whole() if isinstance(value, Sharded) else value
    laid_out = distribute_tensor(
        whole.to(mesh.device_type), mesh, places if fits else [Replicate()] * mesh.ndim, src_data_rank=None
    )
    moved = laid_out.to(parameter.to_local().device)  # which is the CPU, where FSDP2 keeps its parameters there
    assert isinstance(moved, DTensor)
    return moved


def distribute(whole: torch.Tensor, live: DTensor) -> DTensor:
    """A whole tensor, which every rank has, in the layout and on the device of a live one. The dtype stays."""
    target = torch.empty_like(live, dtype=whole.dtype, requires_grad=False)
    assert isinstance(target, DTensor)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    everything = ChunkStorageMetadata(torch.Size([0] * whole.dim()), whole.shape)
    about = TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.shape, [everything])
    planner.set_up_planner({"whole": target}, Metadata({"whole": about}), is_coordinator=True)
    for item in planner.create_local_plan().items:
        place = tuple(slice(a, a + n) for a, n in zip(item.storage_offsets, item.lengths))  # noqa: B905
        planner.resolve_tensor(item).detach().copy_(whole[place])
    return target


def _parsed(text: str) -> Any:
    if text == "R":
        return Replicate()
    return Shard(int(text[1:])) if text[:1] == "S" and text[1:].isdigit() else None


def _fill(saved: Sharded, target: DTensor) -> None:
    """What torch.distributed.checkpoint.load does, for one tensor and without asking other ranks."""
    reader = PieceReader(saved)
    metadata = reader.read_metadata()
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner({saved.name: target}, metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    (plan,) = planner.create_global_plan(reader.prepare_global_plan([plan]))
    reader.read_data(planner.finish_plan(plan), planner).wait()


class PieceReader(StorageReader):
    """Gives DCP one tensor of a checkpoint of ours."""

    def __init__(self, saved: Sharded) -> None:
        self._saved = saved
        self._pieces: Dict[Tuple[int, ...], Piece] = {piece.offsets: piece for piece in saved.pieces}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        chunks = [ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.sizes)) for one in self._saved.pieces]
        about = TensorStorageMetadata(TensorProperties(dtype=self._saved.dtype), torch.Size(self._saved.shape), chunks)
        return Metadata({self._saved.name: about})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The pieces are known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: List[LoadPlan]) -> List[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        for item in plan.items:
            offsets = tuple(item.storage_index.offset or ())
            piece = self._saved.read(self._pieces[offsets])
            place = tuple(slice(a, a + n) for a, n in zip(item.storage_offsets, item.lengths))  # noqa: B905
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece[place])
            planner.commit_tensor(item, target)
        done: "Future[None]" = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False
