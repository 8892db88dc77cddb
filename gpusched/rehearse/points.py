"""At which safe points of the undisturbed run to preempt: at random, but of every kind there is."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gpusched.rehearse.traces import Point

MIDDLE, FIRST, LAST, WINDOW, CHECK, EPOCH = (
    "in the middle of an epoch", "at the first step of an epoch", "at the last step of an epoch",
    "inside an accumulation window", "in an evaluation", "at the end of an epoch",
)  # fmt: skip
_EARLY = (MIDDLE, WINDOW)


def kinds(points: Sequence[Point]) -> list[str]:
    """What each safe point is an example of."""
    steps = [point for point in points if point.kind == "step"]
    epochs = [point.key[:3] for point in steps]  # run, phase, epoch
    first = {id(point) for point, epoch, before in zip(steps, epochs, [None, *epochs], strict=False) if epoch != before}
    last = {id(point) for point, epoch, after in zip(steps, epochs, [*epochs[1:], None], strict=True) if epoch != after}
    found = []
    for point in points:
        if point.kind != "step":
            found.append({"check": CHECK, "micro_step": WINDOW}.get(point.kind, EPOCH))
        else:
            found.append(LAST if id(point) in last else FIRST if id(point) in first else MIDDLE)
    return found


def choose(points: Sequence[Point], count: int, seed: int) -> list[tuple[int, str]]:
    """(index of the safe point, what it is an example of) of `count` of them, in order. Fewer, if there are fewer.

    The middle of an epoch comes first, then an accumulation window (where counters of a script's own go wrong, while
    they are right between two windows), then in random order one of each other kind, and so on around.
    """
    chance = random.Random(seed)
    example = kinds(points)
    groups = {kind: [index for index, one in enumerate(example) if one == kind] for kind in dict.fromkeys(example)}
    for members in groups.values():
        chance.shuffle(members)
    order = list(groups)
    chance.shuffle(order)
    order.sort(key=lambda kind: _EARLY.index(kind) if kind in _EARLY else len(_EARLY))
    chosen: list[int] = []
    while len(chosen) < count and any(groups.values()):
        for kind in order:
            if groups[kind] and len(chosen) < count:
                chosen.append(groups[kind].pop())
    return [(index, example[index]) for index in sorted(chosen)]
