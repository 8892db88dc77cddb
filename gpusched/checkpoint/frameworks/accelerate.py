"""accelerate: a Run over everything that an Accelerator has prepared.

    from gpusched.checkpoint.frameworks.accelerate import AcceleratedRun

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    run = AcceleratedRun(accelerator)
    for epoch in run.epochs(3):
        for batch in run.batches(loader):
            with accelerator.accumulate(model):
                ...
            run.step(loss=loss)             # counts a step only where accelerate makes one

It is the Run of plain loops, with its checkpoints; accelerator.save_state() is not used. What accelerate sets too early
(random numbers, before the loader is iterated over) comes back at the first batch, and samples draw from seeds of their
own. Must not reach into accelerate beyond the lists of what was prepared and the state of its prepared loaders.
"""

import importlib
from typing import Any, Dict, Iterator, List, Optional

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.frameworks.loaders import plain_loader
from gpusched.checkpoint.run import Run

_END = object()


class AcceleratedRun(Run):
    """A Run with the models, optimizers, schedulers and scaler that were prepared, and what was registered with
    accelerator.register_for_checkpointing(). Make it after accelerator.prepare(); `more` as for Run: metrics, ema,
    generators, seed, directory, keep, every_seconds…

    model: the prepared model (a list or dictionary of them); needed with several processes only, since the Accelerator
    keeps what was inside of DistributedDataParallel. Raises CheckpointError without it, or if nothing was prepared yet.
    """

    def __init__(
        self, accelerator: Any, model: Any = None, extra: Optional[Dict[str, Any]] = None, **more: Any
    ) -> None:
        if not accelerator._models:
            raise CheckpointError(
                "This Accelerator has not prepared a model yet.",
                "Make the AcceleratedRun after accelerator.prepare(model, optimizer, loader, ...).",
            )
        if model is None and accelerator.num_processes > 1:
            raise CheckpointError(
                "With %d processes the prepared model itself is needed." % accelerator.num_processes,
                "Write AcceleratedRun(accelerator, model).",
            )
        optimizers = [one.optimizer for one in accelerator._optimizers]
        schedulers = [getattr(one, "scheduler", one) for one in accelerator._schedulers]
        registered = {"registered%d" % i: one for i, one in enumerate(accelerator._custom_objects)}
        window = {"accelerator": _Window(accelerator)}  # how far an accumulation window is
        ignore = [accelerator, *accelerator._optimizers, *accelerator._schedulers, *more.pop("ignore", ())]
        super().__init__(
            model=model if model is not None else _one_or_all(accelerator._models),
            optimizer=_one_or_all(optimizers),
            scheduler=_one_or_all(schedulers),
            scaler=accelerator.scaler,
            extra={**window, **registered, **(extra or {})},
            ignore=ignore,
            **more,
        )
        self.accelerator = accelerator

    def step(self, **metrics: Any) -> None:
        """The batch is done: a step where accelerate has made one, else one more micro batch of the window."""
        if self.accelerator.sync_gradients:
            super().step(**metrics)
        else:
            self.micro_step(**metrics)

    def _make_source(self, loader: Any) -> Any:
        if "base_dataloader" not in getattr(loader, "__dict__", {}):
            return super()._make_source(loader)
        return _PreparedSource(loader, super()._make_source(plain_loader(loader, self.ranks.rank, self.ranks.size)))


class _PreparedSource:
    """The batches of a prepared loader, on its device, with accelerate told where the last one is."""

    def __init__(self, loader: Any, source: Any) -> None:
        self._loader, self._inner = loader, source
        self._state: Any = None
        self._ahead = False  # the inner source has been asked for one batch more than was handed out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def state(self) -> Any:
        return self._state if self._ahead else self._inner.state()

    def iterate(self, seed: int, start: int, state: Any = None) -> Iterator[Any]:
        send_to_device = importlib.import_module("accelerate.utils").send_to_device
        loader = self._loader
        loader.begin()
        try:
            for last, batch in self._marked(iter(self._inner.iterate(seed, start, state)), start):
                loader.end_of_dataloader = last
                device = getattr(loader, "device", None)
                yield send_to_device(batch, device) if device is not None else batch
        finally:
            loader.end()

    def _marked(self, items: Iterator[Any], start: int) -> Iterator[Any]:
        """(whether it is the last one, batch). Without a length that takes a look at the next batch."""
        length = self._inner.length()
        if length is not None:
            for number, item in enumerate(items, start + 1):
                yield number >= length, item
            return
        item = next(items, _END)
        while item is not _END:
            self._state, self._ahead = self._inner.state(), True
            following = next(items, _END)
            yield following is _END, item
            item = following
        self._ahead = False


class _Window:
    """accelerate's count of micro batches since the last step."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def state_dict(self) -> Dict[str, Any]:
        return {"step": self._accelerator.step}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._accelerator.step = state["step"]


def _one_or_all(things: List[Any]) -> Any:
    if not things:
        return None
    return things[0] if len(things) == 1 else list(things)
