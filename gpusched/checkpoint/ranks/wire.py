"""What logical ranks say to each other over torch.distributed: sums in a fixed order, and one's tensors for all.

With one process there is nobody to talk to, and torch.distributed is not needed. Must not know what is said.
"""

import os
import sys
from typing import Any, Dict, Iterator, List

from gpusched.checkpoint.errors import CheckpointError

_PIECE = 8 << 20  # elements: sent at once by each process


def _bundles(tensors: List[Any]) -> Iterator[List[Any]]:
    """Tensors of one type and device, some of them at a time: many small messages would cost more than their bytes."""
    kinds: Dict[Any, List[Any]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for kind in kinds.values():
        bundle: List[Any] = []
        for tensor in kind:
            if bundle and sum(one.numel() for one in bundle) + tensor.numel() > _PIECE:
                yield bundle
                bundle = []
            bundle.append(tensor)
        yield bundle


class Wire:
    """The processes of the script's default group; just this one if torch.distributed is not initialised.

    Raises CheckpointError if this process was started as one of several and they are not connected.
    """

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        distributed = torch.distributed if torch is not None and torch.distributed.is_available() else None
        self._distributed: Any = None
        self.rank, self.size = 0, 1
        if distributed is not None and distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
            self._distributed = distributed
            return
        world = os.environ.get("WORLD_SIZE", "1")
        if world.isdigit() and int(world) > 1:
            raise CheckpointError(
                "This process is one of %s (WORLD_SIZE), but torch.distributed is not initialized yet." % world,
                "Call torch.distributed.init_process_group() first, or unset WORLD_SIZE if it is not meant.",
            )

    def add_in_order(self, total: Any, mine: Any) -> None:
        """Add the vectors of all processes to `total`, the one of process 0 first; all of them do so alike."""
        if self.size == 1:
            total += mine
            return
        for begin in range(0, mine.numel(), _PIECE):
            piece = mine[begin : begin + _PIECE]
            for one in self._gather(piece):
                total[begin : begin + _PIECE] += one

    def numbers(self, value: float) -> List[float]:
        """Every process's number, in their order."""
        if self.size == 1:
            return [value]
        torch = sys.modules["torch"]
        return [float(one) for one in self._gather(torch.tensor([value], dtype=torch.float64, device=self._device()))]

    def level(self, tensors: List[Any]) -> None:
        """Write process 0's values into these tensors."""
        if self.size == 1:
            return
        torch = sys.modules["torch"]
        for bundle in _bundles(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bundle])
            self._distributed.broadcast(flat, 0)
            with torch.no_grad():
                for tensor, part in zip(bundle, flat.split([tensor.numel() for tensor in bundle])):  # noqa: B905
                    tensor.copy_(part.view_as(tensor))

    def _gather(self, mine: Any) -> List[Any]:
        torch = sys.modules["torch"]
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._distributed.all_gather(found, mine)
        return found

    def _device(self) -> Any:
        return "cuda" if self._distributed.get_backend() == "nccl" else "cpu"
