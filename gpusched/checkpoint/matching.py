"""Which name in a file is which name in the model: wrappers' prefixes, renaming, and a guess for a helpful hint.

Wrappers leave their mark in the names that they save: torch.compile `_orig_mod.`, DataParallel and
DistributedDataParallel `module.`, Lightning and many trainers `model.`, FSDP and activation checkpointing names of
their own. Must not look at the tensors (but for shapes in a hint), nor decide whether a match is good enough.
"""

import itertools
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from gpusched.checkpoint.errors import CheckpointError

Rename = Union[Mapping[str, str], Callable[[str], Optional[str]]]

_ANYWHERE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_LEADING = ("module.", "model.")
_DEPTH = 3


def renamed(table: Dict[str, Any], prefix: str, rename: Optional[Rename]) -> Tuple[Dict[str, Any], List[str]]:
    """(the table under the names that the caller wants, the names that were dropped).

    Only names that begin with `prefix` are taken, without it. `rename`: a function of a name (None drops it), or a
    table of beginnings of names, the longest that fits counts. Raises CheckpointError if two names become one.
    """
    result: Dict[str, Any] = {}
    dropped = []
    for name, value in table.items():
        new = _new_name(name[len(prefix) :], rename) if name.startswith(prefix) else None
        if new is None:
            dropped.append(name)
        elif new in result:
            raise CheckpointError("Two tensors of the file would be %s after renaming." % new, "Check rename=.")
        else:
            result[new] = value
    if prefix and not result:
        some = ", ".join(itertools.islice(table, 3))
        raise CheckpointError("No name in the file begins with %r." % prefix, "There are names such as %s." % some)
    return result, dropped


def _new_name(name: str, rename: Optional[Rename]) -> Optional[str]:
    if rename is None:
        return name
    if callable(rename):
        return rename(name)
    fitting = [begin for begin in rename if name.startswith(begin)]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    return rename[longest] + name[len(longest) :]


def align(names: Iterable[str], wanted: Iterable[str]) -> Dict[str, str]:
    """Name in the file → name in the model's terms, wrappers' prefixes removed (or added) so that most agree.

    Tries every way to take up to three `module.` and `model.` from the front, and to put one there; keeps the way
    under which most names are wanted ones, the shortest of equals. Names are left as they are if none is better.
    """
    clean = {name: _ANYWHERE.sub("", name) for name in names}
    if len(set(clean.values())) < len(clean):  # both are in the file: then neither is a wrapper's mark
        clean = {name: name for name in clean}
    targets = set(wanted)
    best, most = clean, sum(name in targets for name in clean.values())
    for change in _changes():
        if most == len(targets):
            break
        moved = {name: change(plain) for name, plain in clean.items()}
        good = {name: new for name, new in moved.items() if new is not None}
        found = len(targets.intersection(good.values()))
        if found > most and len(set(good.values())) == len(good):
            best, most = {name: good.get(name, clean[name]) for name in clean}, found
            best = _without_clashes(best, good)
    return best


def _changes() -> Iterable[Callable[[str], Optional[str]]]:
    for depth in range(1, _DEPTH + 1):
        for parts in itertools.product(_LEADING, repeat=depth):
            yield _taking("".join(parts))
    for part in _LEADING:
        yield _putting(part)


def _taking(front: str) -> Callable[[str], Optional[str]]:
    return lambda name: name[len(front) :] if name.startswith(front) and len(name) > len(front) else None


def _putting(front: str) -> Callable[[str], Optional[str]]:
    return lambda name: front + name


def _without_clashes(chosen: Dict[str, str], moved: Dict[str, str]) -> Dict[str, str]:
    """A name without the prefix must not pass for one that had it: it keeps a mark that no model has."""
    taken = set(moved.values())
    return {name: new if name in moved or new not in taken else "(%s)" % name for name, new in chosen.items()}


def hint_to_rename(missing: Dict[str, Any], unexpected: Dict[str, Any]) -> str:
    """A `rename=` that would make most of the missing names be found, as the caller would write it; else empty."""
    by_shape: Dict[Tuple[int, ...], List[str]] = {}
    for name, value in unexpected.items():
        by_shape.setdefault(tuple(getattr(value, "shape", ())), []).append(name)
    votes: Dict[Tuple[str, str], int] = {}
    for name, value in missing.items():
        for other in by_shape.get(tuple(getattr(value, "shape", ())), ()):
            pair = _fronts(other, name)
            if pair is not None:
                votes[pair] = votes.get(pair, 0) + 1
    if not votes:
        return ""
    (theirs, ours), count = max(votes.items(), key=lambda item: (item[1], -len(item[0][0]) - len(item[0][1])))
    return "rename={%r: %r}" % (theirs, ours) if 2 * count > len(missing) else ""


def _fronts(theirs: str, ours: str) -> Optional[Tuple[str, str]]:
    """What remains in front of two names when their common end is taken away, in whole words."""
    a, b = theirs.split("."), ours.split(".")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    if same == 0:
        return None
    return "".join(one + "." for one in a[: len(a) - same]), "".join(one + "." for one in b[: len(b) - same])
