"""The loaders that a run was given: one source for each, so that persistent workers persist over its epochs.

A script may make new loaders in every epoch; each keeps its data and its workers. So those that an epoch has not used
are forgotten at its end. Must not decide what kind of source a loader gets (sources.py does).
"""

from typing import Any, Callable, Dict, Set, Tuple


class KnownLoaders:
    """Sources by their loader."""

    def __init__(self) -> None:
        self._sources: Dict[int, Tuple[Any, Any]] = {}  # the pair keeps the loader's id its own
        self._used: Set[int] = set()

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, loader: Any, make: Callable[[Any], Any]) -> Any:
        """The one that was made for this very loader, or a new one."""
        if isinstance(loader, (range, list, tuple)):
            return make(loader)
        if id(loader) not in self._sources:
            self._sources[id(loader)] = (loader, make(loader))
        self._used.add(id(loader))
        return self._sources[id(loader)][1]

    def forget_unused(self) -> None:
        """An epoch is over."""
        self._sources = {key: pair for key, pair in self._sources.items() if key in self._used}
        self._used = set()
