"""Counts devices while jobs are gone through in order: who would get some, if all were given out anew.

With one kind of device this is a number. With several overlapping kinds it is Hall's condition: whatever kinds one
looks at together, those who want them may not want more than there are of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpusched.model.job import Attempt, Request
from gpusched.policy.reserve import competes_for
from gpusched.policy.view import View

_MANY = 8  # kinds; past that only each kind alone and all together are counted
_SLACK = 1e-9


class Allotment:
    """What is left to be granted."""

    def __init__(self, view: View, requests: Iterable[Request]) -> None:
        self._view = view
        kinds = {competes_for(view, request): view.pool(request) for request in requests if request.gpus}
        self._all_able = all(pool.able == sum(pool.sizes) for pool in kinds.values())
        self._bit = {kind: 1 << number for number, kind in enumerate(kinds)}
        everything = (1 << len(kinds)) - 1
        few = len(kinds) <= _MANY
        masks = list(range(1, everything + 1)) if few else [*self._bit.values(), everything]
        self._left: dict[int, float] = {}
        for mask in masks:
            chosen = [kind for kind, bit in self._bit.items() if bit & mask]
            whole = len(chosen) == 1 and not view.reservations
            alone = kinds[chosen[0]].able if whole else self._able(frozenset().union(*chosen))
            self._left[mask] = float(alone)
        self._masks = {kind: [mask for mask in masks if mask & bit] for kind, bit in self._bit.items()}
        self._alone = list(self._bit.values())
        self._young = dict.fromkeys(masks, 0.0)  # in the hands of those who can be asked to leave before long
        self._known: dict[Request, tuple[float, list[int]]] = {}  # what it needs, and which masks hold its kind

    def _able(self, uuids: frozenset[str]) -> int:
        return sum(1 for uuid in uuids if self._view.slots[uuid].able)

    @property
    def spent(self) -> bool:
        """Nothing is left for anybody."""
        for mask in self._alone:  # noqa: SIM110, a loop because this is asked for every job in every cycle
            if self._left[mask] > _SLACK:
                return False
        return True

    def grant(self, request: Request) -> bool:
        """Take what the request needs, if there is enough."""
        (need, masks), left = self._of(request), self._left
        for mask in masks:
            if left[mask] < need - _SLACK:
                return False
        for mask in masks:
            left[mask] -= need
        return True

    def force(self, request: Request, attempt: Attempt | None = None, *, young: bool = False) -> None:
        """Take what a job needs that keeps its devices in any case, without those of its attempt that nobody else could
        have: they have failed, or are in foreign use. young: it keeps them only because it has just started."""
        need, masks = self._of(request)
        if attempt is not None and not self._all_able:
            slots = [self._view.slots.get(uuid) for uuid in attempt.uuids]
            need *= sum(slot is not None and slot.able for slot in slots) / len(slots)
        for mask in masks:
            self._left[mask] -= need
            self._young[mask] += need * young

    def reserve(self, request: Request) -> bool:
        """Take what the request needs, if only the devices of young jobs are missing: nobody else gets them then."""
        need, masks = self._of(request)
        if any(self._left[mask] + self._young[mask] < need - _SLACK for mask in masks):
            return False
        self.force(request)
        return True

    def need(self, request: Request) -> float:
        """Devices; a job that shares counts by its part of the memory."""
        return self._of(request)[0]

    def _of(self, request: Request) -> tuple[float, list[int]]:
        found = self._known.get(request)
        if found is None:
            masks = self._masks[competes_for(self._view, request)]
            found = self._known[request] = self._devices(request), masks
        return found

    def _devices(self, request: Request) -> float:
        if not request.shared:
            return float(request.gpus)
        slots = self._view.suitable(request)
        largest = max((slot.device.total_mib for slot in slots), default=0)
        return request.gpus * min(1.0, (request.gpu_mem_mib or 0) / largest) if largest else float(request.gpus)
