"""An IterableDataset whose items start from seeds of their own, counted per worker, and whose place can be saved.

A saved state of a dataset says how far it was read, but not what its workers' generators would have drawn next. Here
item n of worker w starts from (seed, w, n): after a resume the same number of workers draws the same.
Imports torch: import it where a DataLoader was given.
"""

import copy
from typing import Any, Dict, Iterator, Optional, Tuple

from torch.utils.data import IterableDataset, get_worker_info

from gpusched.checkpoint.state import randomness
from gpusched.checkpoint.state.randomness import mix


class SeededStream(IterableDataset[Any]):
    """The user's dataset; `seed` is to be set before each pass. Its state is that of the iterator, see below."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.seed = dataset, 0
        self.newest: Any = None  # the pass that was begun last in this process
        self.pending: Any = None  # the state from which the next one goes on

    def __iter__(self) -> Iterator[Any]:
        self.newest = SeededIterator(self.dataset, self.seed)
        if self.pending is not None:
            self.newest.load_state_dict(self.pending)
            self.pending = None
        return self.newest  # type: ignore[no-any-return]

    def __getstate__(self) -> Dict[str, Any]:
        return {"dataset": self.dataset, "seed": self.seed, "newest": None, "pending": None}  # for spawned workers

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _OWN or name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # worker_init_fn often divides the work by setting attributes of worker_info.dataset: it means the user's
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)


_OWN = ("dataset", "seed", "newest", "pending")


class SeededIterator(Iterator[Any]):
    """One pass of one worker.

    What it saves is asked for between two items: it is the state after the one that was given last. Whether that was
    the very last one is part of it, since many datasets begin anew when they are asked at their end. So the following
    item is fetched at once, and kept.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        worker = get_worker_info()
        self._dataset, self._seed, self._worker = dataset, seed, worker.id if worker is not None else 0
        self._inner: Any = None
        self._items, self._ended = 0, False
        self._own = randomness.generators_in(dataset)
        self._ahead: Optional[Tuple[Any, Optional[Exception]]] = None  # the following item, or what it raised
        self._state: Any = None  # as it was before that one was fetched

    def __next__(self) -> Any:
        item, error = self._ahead or (None, None)
        if self._ahead is None:
            item = self._fetch()
        self._ahead = None
        if error is not None:
            raise error
        self._items += 1
        return item

    def _fetch(self) -> Any:
        if self._ended:
            raise StopIteration
        if self._inner is None:
            self._begin()
        seed = mix(self._seed, self._worker, self._items)
        randomness.seed_everything(seed)
        try:
            with randomness.lent(self._own, seed):
                return next(self._inner)
        except StopIteration:
            self._ended = True
            raise

    def _begin(self) -> None:
        seed = mix(self._seed, self._worker, "begin")
        randomness.seed_everything(seed)
        with randomness.lent(self._own, seed):
            self._inner = iter(self._dataset)

    def state_dict(self) -> Dict[str, Any]:
        if self._ahead is None:
            self._state = self._capture()
            if self._items and not self._ended:
                try:
                    self._ahead = (self._fetch(), None)
                except StopIteration:
                    self._state["ended"] = True
                except Exception as error:  # it belongs to the next item, not to the saving of this one
                    self._ahead = (None, error)
        return self._state  # type: ignore[no-any-return]

    def _capture(self) -> Dict[str, Any]:
        own_iterator = self._inner is not None and self._inner is not self._dataset
        return {
            _ITEMS: self._items,
            "ended": self._ended,
            "dataset": copy.deepcopy(self._dataset.state_dict()) if has_state(self._dataset) else None,
            "iterator": copy.deepcopy(self._inner.state_dict()) if own_iterator and has_state(self._inner) else None,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """The dataset's state, then its iterator, then the iterator's state: each needs the one before."""
        self._items, self._ended = state[_ITEMS], state["ended"]
        if state["dataset"] is not None and not self._ended:
            self._dataset.load_state_dict(state["dataset"])
        if self._items and not self._ended:
            self._begin()
            if state["iterator"] is not None:
                self._inner.load_state_dict(state["iterator"])


_ITEMS = "items of this worker"


def has_state(value: Any) -> bool:
    """Whether this follows the protocol state_dict/load_state_dict."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def complete(state: Any) -> bool:
    """Whether a loader's state says, for every worker that has given an item, where its dataset is."""
    if isinstance(state, dict):
        if _ITEMS in state:
            return not state[_ITEMS] or state["ended"] or state["dataset"] is not None or state["iterator"] is not None
        return all(complete(value) for value in state.values())
    return all(complete(value) for value in state) if isinstance(state, (list, tuple)) else True
