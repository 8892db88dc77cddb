"""The open devices of one kind, by group, so that a gang finds its place without a look at every device.

A group is what has a fast link inside: a node, an NVLink island, a NUMA node. It must not know jobs: the view tells
it which devices are open (whole, usable, free, kept for nobody).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import NamedTuple

from gpusched.model.policy import Placement


class Member(NamedTuple):
    """A device as a pool knows it."""

    uuid: str
    group: str
    total_mib: int


class Pool:
    """Devices of one kind in the order of their indexes; groups in the order of their first devices."""

    def __init__(self, members: Sequence[Member], placement: Placement) -> None:
        self._placement = placement
        self._uuids = [member.uuid for member in members]
        self.uniform = len({member.total_mib for member in members}) <= 1
        numbers: dict[str, int] = {}
        self._place: dict[str, tuple[int, int]] = {}  # uuid → its group, its position
        sizes: list[int] = []
        for position, member in enumerate(members):
            group = "" if placement is Placement.COUNT else member.group
            number = numbers.setdefault(group, len(numbers))
            if number == len(sizes):
                sizes.append(0)
            sizes[number] += 1
            self._place[member.uuid] = (number, position)
        self._open: list[list[int]] = [[] for _ in sizes]  # open positions of each group, ascending
        self.largest = max(sizes, default=0)
        # Groups by how many are open in them, each set of groups as the bits of a number: a group that changes its set
        # at every start and end is two exclusive ors, and the first of a set is its lowest bit.
        self._by_open = [0] * (self.largest + 1)
        self._by_open[0] = (1 << len(sizes)) - 1
        self._bits = [1 << group for group in range(len(sizes))]
        self.open = 0
        self.able = 0  # devices that could be open, if nobody held them
        self.able_in = [0] * len(sizes)  # of these, how many in each group
        self.sizes = sizes  # of the groups
        self._roomy: dict[int, bool] = {}  # gangs of which size find a place on the able devices, as far as asked
        self._ever: dict[int, bool] = {}  # the same on all devices

    def enable(self, uuid: str, by: int) -> None:
        """A device has become (+1), or is no longer (-1), one that could be open if nobody held it."""
        self.able += by
        self.able_in[self._place[uuid][0]] += by
        self._roomy.clear()

    def could_hold(self, count: int) -> bool:
        """Whether a gang of `count` would find a place, if nobody held any device. Asked at every event for whoever
        is the first to wait, and changed hardly ever: so it is remembered."""
        found = self._roomy.get(count)
        if found is None:
            found = self._roomy[count] = self.has_place(count, self.able_in)
        return found

    def ever_holds(self, count: int) -> bool:
        """Whether a gang of `count` would find a place, if all devices worked and nobody held any. Asked at every
        submit."""
        found = self._ever.get(count)
        if found is None:
            found = self._ever[count] = self.has_place(count, self.sizes)
        return found

    def able_in_groups(self, able: Callable[[str], bool]) -> list[int]:
        """How many devices of each group could be given out, if nobody held any."""
        counts = [0] * len(self.sizes)
        for uuid, (group, _) in self._place.items():
            counts[group] += able(uuid)
        return counts

    def has_place(self, count: int, able: Sequence[int]) -> bool:
        """Whether a gang of `count` would find a place, if so many devices of each group were open."""
        if self._placement is not Placement.PACK or not count:
            return sum(able) >= count
        if count <= self.largest:
            return max(able, default=0) >= count
        full, rest = divmod(count, self.largest)
        whole = sum(number == self.largest for number in able)
        return whole > full or (whole == full and (not rest or any(rest <= n < self.largest for n in able)))

    def group_of(self, uuid: str) -> int:
        return self._place[uuid][0]

    def pick_in(self, groups: Sequence[tuple[int, int]]) -> list[str] | None:
        """So many open devices of each of these groups, or None."""
        if any(len(self._open[group]) < number for group, number in groups):
            return None
        return self._lowest(groups)

    def _lowest(self, groups: Sequence[tuple[int, int]]) -> list[str]:
        return [self._uuids[p] for group, number in groups for p in self._open[group][:number]]

    def flip(self, uuid: str, opened: bool) -> None:
        """A device has become open, or has ceased to be."""
        group, position = self._place[uuid]
        positions, by_open, bit = self._open[group], self._by_open, self._bits[group]
        by_open[len(positions)] ^= bit
        if opened:
            insort(positions, position)
            self.open += 1
        else:
            del positions[bisect_left(positions, position)]
            self.open -= 1
        by_open[len(positions)] ^= bit

    def open_uuids(self) -> list[str]:
        """The open devices by index."""
        return [self._uuids[position] for position in sorted(chain.from_iterable(self._open))]

    @contextmanager
    def without(self, uuids: Sequence[str]) -> Iterator[None]:
        """See these open devices as not open."""
        for uuid in uuids:
            self.flip(uuid, False)
        try:
            yield
        finally:
            for uuid in uuids:
                self.flip(uuid, True)

    def pick(self, count: int) -> list[str] | None:
        """The uuids that a gang of `count` gets now, or None. Best fit; the lowest index settles every tie."""
        if count > self.open:
            return None
        picked = self._packed(count)
        if picked is None and self._placement is Placement.PREFER:
            picked = self._few_groups(count)
        return None if picked is None else self._lowest(picked)

    def _packed(self, count: int) -> list[tuple[int, int]] | None:
        if count <= self.largest:
            group = self._best(count, 0)
            return None if group is None else [(group, count)]
        full, rest = divmod(count, self.largest)
        whole = list(islice(_groups_of(self._by_open[self.largest]), full))
        if len(whole) < full:
            return None
        picked = [(group, self.largest) for group in whole]
        if rest:
            group = self._best(rest, sum([self._bits[group] for group in whole]))
            if group is None:
                return None
            picked.append((group, rest))
        return picked

    def _best(self, count: int, taken: int) -> int | None:
        """The group with the fewest open devices that still suffice. taken: groups that count no more, as bits."""
        for number in range(count, self.largest + 1):
            groups = self._by_open[number] & ~taken
            if groups:
                return _first_of(groups)
        return None

    def _few_groups(self, count: int) -> list[tuple[int, int]]:
        picked = []
        for groups in reversed(self._by_open):
            for group in _groups_of(groups):
                number = min(count, len(self._open[group]))
                picked.append((group, number))
                count -= number
                if not count:
                    return picked
        return picked


def _first_of(groups: int) -> int:
    """The lowest group of a set that is given as bits, and not empty."""
    return (groups & -groups).bit_length() - 1


def _groups_of(groups: int) -> Iterator[int]:
    """The groups of a set that is given as bits, ascending."""
    while groups:
        yield _first_of(groups)
        groups &= groups - 1
