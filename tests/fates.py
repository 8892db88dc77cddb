"""Outcomes of runs by hand, for tests of reports and pictures: jobs start in order when enough devices are free."""

from __future__ import annotations

import heapq

from gpusched.simulator.workload import Fate, Fleet, Outcome, Span, TraceJob, Workload


def a_fate(
    submit: float, started: float, ended: float, gpus: int = 1, duration: float | None = None, *, user: str = "",
    job: str = "", preemptions: int = 0, lost: float = 0.0,
) -> Fate:  # fmt: skip
    """duration: all the time since it was started, unless told otherwise; held: so long on all its devices."""
    length = ended - started if duration is None else duration
    name = job or f"j{submit:g}-{ended:g}"
    return Fate(
        TraceJob(name, submit, gpus, length, user=user), started, ended, preemptions, length * gpus + lost, lost
    )


def an_outcome(*fates: Fate, devices: int = 4, policy: str = "fifo", unfinished: tuple[TraceJob, ...] = ()) -> Outcome:
    return Outcome(policy, Fleet(1, devices), fates, unfinished, (), len(fates) * 3, 0.5)


def in_order(workload: Workload, fleet: Fleet, policy: str = "fifo") -> Outcome:
    """What strict first come, first served does by count of devices, with every span."""
    free, ends, now = list(range(fleet.devices)), list[tuple[float, int, list[int]]](), 0.0
    fates, spans = list[Fate](), list[Span]()
    for place, job in enumerate(workload.jobs):
        now = max(now, job.submit)
        while ends and (ends[0][0] <= now or len(free) < job.gpus):
            end, _, devices = heapq.heappop(ends)
            now, free = max(now, end), sorted(free + devices)
        taken, free = free[: job.gpus], free[job.gpus :]
        heapq.heappush(ends, (now + job.duration, place, taken))
        fates.append(Fate(job, now, now + job.duration, 0, job.duration * job.gpus, 0.0))
        spans += [Span(device, job.id, now, now + job.duration) for device in taken]
    return Outcome(policy, fleet, tuple(fates), (), tuple(spans), 3 * len(fates), 0.1)
