"""Logical ranks: the same bits on 6, 3, 2 or 1 processes, also when the run moves from one to the other.

    run = Run(model=model, optimizer=optimizer, logical=6)      # a loader's batch_size is that of one logical rank
    for epoch in run.epochs(n):
        for shares in run.batches(loader):                      # the batches of this process's logical ranks
            optimizer.zero_grad()
            losses = []
            for x, y in shares:                                 # each with its own random numbers and gradients
                losses.append(loss_of(model(x), y))
                losses[-1].backward()
            optimizer.step()                                    # .grad is the mean over all logical ranks
            run.step(loss=shares.mean(losses))

What a data-parallel run computes depends on the number of processes through the slice of data that each of them sees,
its random numbers, its BatchNorm statistics, and the order in which gradients are added. Here all four belong to the
*logical* rank, of which there are always as many. One process computes several of them, one after the other:

    1. the generators start from (seed, step, logical rank); afterwards they are as they were before the loop
    2. the modules' buffers start from those of the step's beginning; afterwards logical rank 0's are kept everywhere,
       as DistributedDataParallel does it
    3. the gradients of one round of all processes are gathered and added in the order of the logical ranks

Process p computes the logical ranks p, p + n, p + 2n, … of n processes, so that a round is complete and in order, and
only one sum has to be kept. Cost: for L logical ranks L gradients go over the wire instead of one (but nothing on one
process), and memory for two gradients and a few MiB. (EasyScale, SC'23, is the published relative of this method.)
Does not import torch before the script does. Collective: all processes must run the same loop to its end.
"""

from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from gpusched.checkpoint.data.shape import Shape
from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.ranks.sums import Gradients
from gpusched.checkpoint.ranks.wire import Wire
from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import mix

_WRAPPERS = {
    "DistributedDataParallel": "it would reduce gradients on its own",
    "DataParallel": "its replicas draw random numbers in the order of their threads",
    "FullyShardedDataParallel": "it would reduce gradients on its own",
    "FSDPModule": "it would reduce gradients on its own",
}


class LogicalRanks:
    """`count` logical ranks of these modules, on however many processes torch.distributed connects (or just this one).

    generators: those that the loop draws from, besides the global ones; each logical rank starts them anew (objects
    that are no generators are left alone).
    Raises CheckpointError if `count` is no multiple of the number of processes, and for modules that reduce their
    gradients on their own.
    """

    def __init__(self, count: int, modules: Any = (), generators: Sequence[Any] = ()) -> None:
        self.count, self.wire = count, Wire()
        self.shape = Shape(self.wire.rank, self.wire.size, count)
        if hasattr(modules, "named_parameters"):
            modules = [modules]
        self.modules: List[Any] = list(modules.values() if isinstance(modules, dict) else modules)
        self.generators = [one for one in generators if randomness.is_generator(one)]
        self._levelled = False
        self._open: Optional["Shares"] = None
        for module in self.modules:
            _refuse_wrapped(module)

    def over(self, source: Any) -> Any:
        """A source of run.batches() whose items are Shares, if its items can be shared out; else itself."""
        return _Shared(source, self) if source.logical else source

    def shares(self, batches: Sequence[Any], seed: int) -> "Shares":
        """The loop over this process's batches of one step; `seed` is that of the step, equal on all processes.

        Raises CheckpointError if the loop of the step before was left before its end.
        """
        self.check()
        if len(batches) != len(self.shape.mine):
            raise CheckpointError(
                "This process stands for %d logical ranks and got %d batches." % (len(self.shape.mine), len(batches))
            )
        return Shares(self, batches, seed)

    def check(self) -> None:
        """Raises CheckpointError if a loop over shares was left early: then .grad is not the mean of all of them."""
        if self._open is not None:
            raise CheckpointError(
                "The loop over the shares of a step was left before its end.",
                "Let it run through all shares: every process must compute each of its logical ranks.",
            )

    def entered(self, shares: "Shares") -> None:
        """For Shares: its loop begins. The first one gives all processes the weights of the first, as DDP does."""
        self._open = shares
        if not self._levelled:
            self._levelled = True
            tensors = [one.data for one in self.parameters()] + [one for _, _, one in self.buffers()]
            self.wire.level(tensors)

    def completed(self) -> None:
        """For Shares: its loop has run to its end."""
        self._open = None

    def parameters(self) -> List[Any]:
        """All parameters, each once."""
        found = {id(one): one for module in self.modules for one in module.parameters()}
        return list(found.values())

    def buffers(self) -> List[Tuple[Any, str, Any]]:
        """(module, name, tensor) of every buffer, those that no state_dict has included."""
        found: Dict[int, Tuple[Any, str, Any]] = {}
        for module in self.modules:
            for inner in module.modules():
                for name, tensor in inner._buffers.items():
                    if tensor is not None:
                        found.setdefault(id(tensor), (inner, name, tensor))
        return list(found.values())


class Shares:
    """This process's batches of one step, one for each of its logical ranks. Iterate over it once, to its end."""

    def __init__(self, ranks: LogicalRanks, batches: Sequence[Any], seed: int) -> None:
        self._ranks, self._seed, self._begun = ranks, seed, False
        self.batches = list(batches)

    def __len__(self) -> int:
        """Logical ranks of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            raise CheckpointError("The shares of a step can be gone through only once.")
        self._begun = True
        ranks = self._ranks
        ranks.entered(self)
        buffers, gradients = _Buffers(ranks), Gradients(ranks.parameters(), ranks.count, ranks.wire)
        outside = randomness.capture()
        try:
            for logical, batch in zip(ranks.shape.mine, self.batches):  # noqa: B905 - strict= needs Python 3.10
                seed = mix(self._seed, "logical", logical)
                buffers.begin(first=logical == ranks.shape.rank)
                _seed_all(seed)
                with randomness.lent(ranks.generators, seed):
                    yield batch
                buffers.keep_if(logical == 0)
                gradients.add_round()
        finally:
            randomness.restore(outside)
        buffers.finish()
        gradients.finish()
        ranks.completed()

    def mean(self, values: Sequence[Any]) -> float:
        """The mean of a number over all logical ranks, given one for each of this process's; the same bits everywhere.

        Collective, like the loop itself. Numbers or tensors of one element.
        """
        if len(values) != len(self.batches):
            raise CheckpointError(
                "shares.mean() got %d values for %d shares." % (len(values), len(self.batches)),
                "Collect one value in each turn of `for batch in shares:`.",
            )
        total = 0.0
        for value in values:
            plain = value.detach() if hasattr(value, "detach") else value
            for one in self._ranks.wire.numbers(float(plain)):
                total += one
        return total / self._ranks.count


class _Shared:
    """A source whose items are Shares instead of lists of batches. The seed of a step depends on its place alone."""

    logical = ends_at_length = True
    pace: Optional[float] = None

    def __init__(self, source: Any, ranks: LogicalRanks) -> None:
        self._source, self._ranks = source, ranks
        self.length: Callable[[], Optional[int]] = source.length
        self.identity: Callable[[], Dict[str, Any]] = source.identity
        self.global_batch: Callable[[], Optional[int]] = source.global_batch
        self.state: Callable[[], Any] = source.state

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Shares]:
        for number, batches in enumerate(self._source.iterate(seed, start, state), start):
            yield self._ranks.shares(batches, mix(seed, "step", number))


class _Buffers:
    """The modules' buffers: each logical rank starts from the same ones, and logical rank 0's stay."""

    def __init__(self, ranks: LogicalRanks) -> None:
        self._ranks = ranks
        self._start = [(module, name, tensor.detach().clone()) for module, name, tensor in ranks.buffers()]
        self._kept = self._start

    def begin(self, first: bool) -> None:
        if not first:
            self._put(self._start)

    def keep_if(self, wanted: bool) -> None:
        if wanted:
            self._kept = [(module, name, tensor.detach().clone()) for module, name, tensor in self._ranks.buffers()]

    def finish(self) -> None:
        if self._ranks.shape.rank == 0:
            self._put(self._kept)
        self._ranks.wire.level([tensor for _, _, tensor in self._ranks.buffers()])

    def _put(self, buffers: List[Tuple[Any, str, Any]]) -> None:
        torch = _torch()
        with torch.no_grad():
            for module, name, tensor in buffers:
                present = module._buffers[name]
                if present is not None and present.shape == tensor.shape and present.dtype == tensor.dtype:
                    present.copy_(tensor)
                else:  # the module makes new ones instead of writing into them
                    module._buffers[name] = tensor.clone()


def _seed_all(seed: int) -> None:
    """Host and device: unlike a loader, a training step draws on the device, too."""
    torch = _torch()
    randomness.seed_everything(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _refuse_wrapped(module: Any) -> None:
    for inner in module.modules():
        for kind in type(inner).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise CheckpointError(
                    "Logical ranks cannot work with a model in %s: %s." % (kind.__name__, _WRAPPERS[kind.__name__]),
                    "Register the model itself, and call that in the loop.",
                )


def _torch() -> Any:
    import torch

    return torch
