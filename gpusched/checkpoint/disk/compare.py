"""What differs between two checkpoints, bit for bit: tensors, arrays and plain values, each with its place.

Tensors are read in pieces, so that two checkpoints of any size fit. Equal means equal bits: a NaN equals itself, and
0.0 is not -0.0. torch is imported only to describe numbers that differ.
Must not compare what is about the saving and not the run (times, costs, host, versions): see `_ABOUT_SAVING`; and the
manifest is left alone.
"""

from dataclasses import dataclass
from typing import Any, Iterator, List, Tuple

from gpusched.checkpoint.disk.arrays import Array
from gpusched.checkpoint.disk.details import describe
from gpusched.checkpoint.disk.inspect import Content, Items, Plain, in_order, read_content

# What a Difference can say.
MISSING, EXTRA = "only in the second", "only in the first"
KIND, DTYPE, SHAPE, LENGTH, NUMBERS, VALUE, RANKS = (
    "kind", "dtype", "shape", "length", "numbers", "value", "ranks",
)  # fmt: skip
_ABOUT_SAVING = ("history",)  # seconds that attempts have taken: no two runs have the same
_SHOWN = 60


@dataclass(frozen=True)
class Difference:
    """One thing that is not equal. `place` is like `optimizer/state/0.weight/exp_avg`, with `rank 1: ` before what
    belongs to one of several ranks; `what` is one of the words above; `detail` is for people."""

    place: str
    what: str
    detail: str

    def __str__(self) -> str:
        if self.what in (MISSING, EXTRA):
            return "%s is %s%s" % (self.place, self.what, " (%s)" % self.detail if self.detail else "")
        return "%s: %s" % (self.place, self.detail)


def compare(path_a: str, path_b: str) -> List[Difference]:
    """All differences between two checkpoint directories; [] if they hold the same bits.

    In a stable order: the shared models, optimizers, schedulers… first, position and values, then each rank's own.
    Checkpoints of both formats can be compared with each other. Raises CheckpointError if one of them cannot be read,
    OSError. Does not check checksums: files.examine does.
    """
    return list(differences(read_content(path_a), read_content(path_b)))


def differences(one: Content, other: Content) -> Iterator[Difference]:
    """As `compare`, one after the other, for two checkpoints that are open."""
    ranks = [len(content.own) or 1 for content in (one, other)]  # format 1 knows one process only
    if ranks[0] != ranks[1]:
        yield Difference("ranks", RANKS, "%d rank(s) saved the first and %d the second" % (ranks[0], ranks[1]))
    if one.own and other.own:
        yield from _dictionaries(one.shared, other.shared, "")
        for rank in sorted(set(one.own) & set(other.own)):
            name = "rank %d: " % rank if max(ranks) > 1 else ""
            yield from _dictionaries(one.own[rank], other.own[rank], "", name)
    else:
        yield from _dictionaries(_whole(one), _whole(other), "")


def _whole(content: Content) -> "dict[str, Any]":
    """All that one process would load, as format 1 has it."""
    return dict(content.shared, **content.own.get(0, {}))


def _nodes(one: Any, other: Any, place: str) -> Iterator[Difference]:
    if type(one) is not type(other):
        yield Difference(place, KIND, "%s and %s" % (kind_of(one), kind_of(other)))
    elif isinstance(one, dict):
        yield from _dictionaries(one, other, place)
    elif isinstance(one, Items):
        yield from _items(one, other, place)
    elif isinstance(one, Array):
        yield from _arrays(one, other, place)
    elif one.type != other.type:
        yield Difference(place, KIND, "%s %s and %s %s" % (one.type, cut(one.text), other.type, cut(other.text)))
    elif one.text != other.text:
        yield Difference(place, VALUE, "%s and %s" % _apart(one.text, other.text))


def _dictionaries(one: Any, other: Any, place: str, name: str = "") -> Iterator[Difference]:
    top = not place
    keys = [key for key in dict.fromkeys([*one, *other]) if not (top and key in _ABOUT_SAVING)]
    for key in in_order(keys) if top else keys:
        inner = name + key if top else "%s/%s" % (place, key)
        if key not in other:
            yield Difference(inner, EXTRA, kind_of(one[key]))
        elif key not in one:
            yield Difference(inner, MISSING, kind_of(other[key]))
        else:
            yield from _nodes(one[key], other[key], inner)


def _items(one: Items, other: Items, place: str) -> Iterator[Difference]:
    """Lists of plain values (a generator's state, a loss curve) are one difference, not one for each number."""
    if one.type != other.type:
        yield Difference(place, KIND, "%s and %s" % (kind_of(one), kind_of(other)))
        return
    pairs = list(zip(one.items, other.items))  # noqa: B905 - Python 3.9
    plain = all(isinstance(node, Plain) for node in one.items + other.items)
    unequal = [index for index, (here, there) in enumerate(pairs) if here != there] if plain else []
    if len(one.items) != len(other.items):
        same = "equal up to there" if plain and not unequal else ""
        from_place = "the first %d are equal" % unequal[0] if unequal else same
        text = "%d and %d items%s" % (len(one.items), len(other.items), "; " + from_place if from_place else "")
        yield Difference(place, LENGTH, text)
    elif unequal:
        here, there = (cut(node.text) for node in pairs[unequal[0]])
        text = "%d of %d values differ; first [%d]: %s and %s"
        yield Difference(place, VALUE, text % (len(unequal), len(pairs), unequal[0], here, there))
    if not plain:
        for index, (here, there) in enumerate(pairs):
            yield from _nodes(here, there, "%s/%d" % (place, index))


def _arrays(one: Array, other: Array, place: str) -> Iterator[Difference]:
    if one.kind != other.kind:
        yield Difference(place, KIND, "%s and %s" % (kind_of(one), kind_of(other)))
    elif one.dtype != other.dtype:
        yield Difference(place, DTYPE, "%s and %s" % (one.dtype, other.dtype))
    elif one.shape != other.shape:
        yield Difference(place, SHAPE, "%s and %s" % (list(one.shape), list(other.shape)))
    else:
        text = describe(one, other)
        if text:
            yield Difference(place, NUMBERS, text)


def kind_of(node: Any) -> str:
    """What a node is, in a word or two: `float32 [10, 4]`, `a list of 3`, `str`."""
    if isinstance(node, Array):
        return "%s%s %s" % ("numpy " if node.kind == "numpy" else "", node.dtype, list(node.shape))
    if isinstance(node, Items):
        return "a %s of %d" % (node.type, len(node.items))
    if isinstance(node, dict):
        return "a dictionary of %d" % len(node)
    return "%s %s" % (node.type, cut(node.text)) if node.type != "NoneType" else "None"


def cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _apart(one: str, other: str) -> Tuple[str, str]:
    """Two texts, shortened so that where they part can be seen."""
    if max(len(one), len(other)) <= _SHOWN:
        return one, other
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))  # noqa: B905
    start = max(0, at - _SHOWN // 3)
    lead = "…" if start else ""
    return lead + cut(one[start:]), lead + cut(other[start:])
