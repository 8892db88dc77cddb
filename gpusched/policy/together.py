"""Where gangs are packed (`placement = pack`): which numbers of devices the groups of this machine can ever hold.

It looks at what devices there are, not at whether they work or are free.
"""

from __future__ import annotations

from gpusched.model.job import Request
from gpusched.model.policy import Placement
from gpusched.policy.view import View


def ever_together(view: View, request: Request, gpus: int | None = None) -> bool:
    """Whether so many devices (default: as many as the request needs at least) could be given out as a gang, if all
    devices worked and nobody held any."""
    if request.shared or view.rules.policy.placement is not Placement.PACK:
        return True
    return view.pool(request).ever_holds(request.gpus if gpus is None else gpus)


def instead(view: View, request: Request) -> list[int]:
    """The nearest numbers that would do: the next smaller one, and the next larger one if there is any."""
    there = len(view.suitable(request))
    fitting = [gpus for gpus in range(1, there + 1) if ever_together(view, request, gpus)]
    below = [gpus for gpus in fitting if gpus < request.gpus]
    above = [gpus for gpus in fitting if gpus > request.gpus]
    return below[-1:] + above[:1]


def group_sizes(view: View, request: Request) -> str:
    """`4, 1 and 1`."""
    sizes = [str(size) for size in sorted(view.pool(request).sizes, reverse=True)]
    return f"{', '.join(sizes[:-1])} and {sizes[-1]}" if len(sizes) > 1 else sizes[0]
