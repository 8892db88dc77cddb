"""One checkpoint of all ranks: all of it is published, or nothing of it remains.

    1. rank 0 makes the draft and tells its name
    2. every rank writes its own files into it; rank 0 also writes what is equal on all
    3. every rank tells the entries of its files for the manifest, or its error
    4. rank 0 seals and publishes; if there was an error anywhere it removes the draft, and every rank gets that error
    5. all know the result before any goes on

The same steps are taken by the training threads (a stop, which is waited for) and by the threads that write behind the
training; these have a gloo group of their own, since a disk that is full cannot carry the message that it is full.
Must not know what is in the files, nor when to save.
"""

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, List, TypeVar

from gpusched.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from gpusched.checkpoint.disk import files

T = TypeVar("T")
Entries = Dict[str, Dict[str, Any]]


def each(ranks: Any, action: Callable[[], T]) -> T:
    """Do something on every rank: if it fails on one, it counts as failed on all. A collective call.

    Returns this rank's result. Raises on all ranks the error of the first that had one: elsewhere as an OSError with
    the same number or as a CheckpointError, whose text names the rank. So all ranks take the same way from here.
    """
    if ranks.size == 1:
        return action()
    results: List[T] = []
    every(ranks, lambda: results.append(action()))
    return results[0]


def every(ranks: Any, action: Callable[[], Any]) -> List[Any]:
    """As `each`, for an action with a result that can be told (JSON): returns the results of all ranks."""
    result, error = None, None
    try:
        result = action()
    except Exception as problem:
        error = problem
    told = ranks.gather({"result": result} if error is None else _to_plain(error))
    for rank, one in enumerate(told):
        if "result" not in one:
            raise error if error is not None and rank == ranks.rank else _from_plain(one, rank)
    return [one["result"] for one in told]


def save(
    ranks: Any, begin: "Callable[[], files.Draft]", write: Callable[[str], Entries], step: int, about: Dict[str, Any]
) -> "files.Checkpoint":
    """Write one checkpoint of all ranks, durable when this returns. A collective call.

    begin: makes the draft; called on rank 0 only. write: puts this rank's files into the folder, flushed to the disk.
    Raises on all ranks what `each` would; then nothing of it remains, and the older checkpoints are untouched.
    """
    drafts: "List[files.Draft]" = []

    def make() -> str:
        drafts.append(begin())
        return drafts[0].folder

    def seal(parts: List[Entries]) -> str:
        entries = {name: entry for part in parts for name, entry in part.items()}
        return drafts[0].seal(step, entries, about).path

    first = ranks.rank == 0
    try:
        folder = every(ranks, lambda: make() if first else None)[0]
        parts = every(ranks, lambda: write(folder))
        path = every(ranks, lambda: seal(parts) if first else None)[0]
    finally:
        for draft in drafts:
            draft.discard()
    from gpusched.checkpoint.disk import files

    return files.examine(path, checksums=False)


def _to_plain(error: Exception) -> Dict[str, Any]:
    if isinstance(error, OSError) and error.errno is not None:
        return {"errno": error.errno}
    if isinstance(error, CheckpointError):
        return {"text": error.message, "hint": error.hint}
    return {"text": "%s: %s" % (type(error).__name__, error), "hint": ""}


def _from_plain(told: Dict[str, Any], rank: int) -> Exception:
    if "errno" in told:
        return OSError(told["errno"], "%s (rank %d)" % (os.strerror(told["errno"]), rank))
    return CheckpointError("On rank %d: %s" % (rank, told["text"]), told["hint"])
