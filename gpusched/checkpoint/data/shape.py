"""How the processes of a run share its data: who this process is among how many, and for whom it loads.

Must not import torch, nor ask anybody: the run that knows its ranks says it once.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

from gpusched.checkpoint.errors import CheckpointError


@dataclass(frozen=True)
class Shape:
    """Rank `rank` of `size` processes; `logical`: the number of logical ranks they stand for (None: no such thing)."""

    rank: int = 0
    size: int = 1
    logical: Optional[int] = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise CheckpointError("Rank %d of %d processes does not exist." % (self.rank, self.size))
        if self.logical is not None and (self.logical < 1 or self.logical % self.size):
            fitting = [str(size) for size in range(1, max(self.logical, 1) + 1) if self.logical % size == 0]
            raise CheckpointError(
                "%d logical ranks cannot be shared evenly by %d processes." % (self.logical, self.size),
                "Start %s processes, or choose another number of logical ranks." % _or(fitting),
            )

    @property
    def mine(self) -> Tuple[int, ...]:
        """The logical ranks of this process: every size-th, so that each round of all processes is in their order."""
        return tuple(range(self.rank, self.logical or self.size, self.size))


def _or(words: "list[str]") -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


ONE = Shape()
