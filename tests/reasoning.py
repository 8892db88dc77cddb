"""Looks at the reason of every waiting job after a step, and says if it is not true. For workloads in virtual time."""

from __future__ import annotations

from collections import Counter

from playing import Play

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy import explain
from gpusched.policy.explain import Word
from gpusched.policy.fit import fit, foreign_blocks, possible
from gpusched.policy.limits import limited
from gpusched.policy.priority import scheduling_order
from gpusched.policy.reserve import closed, competes_for
from gpusched.policy.view import View


def reasons_are_true(play: Play) -> Counter[str]:
    """Raises AssertionError naming a job that is told what is not so. Returns how often each reason was given."""
    view, now = play.view, play.world.now
    said: Counter[str] = Counter()
    for job in list(view.waiting()):
        why = explain.reason(view, job, now)
        said[why.word] += 1
        assert _true(view, now, job, why.word), f"{job.key} is told {why}"
    return said


def _true(view: View, now: Instant, job: Job, word: Word) -> bool:
    request, shut = job.spec.request, closed(view, job, now)
    match word:
        case Word.RESOURCES:
            ahead = [other for other in _rivals(view, now, job) if _could_start(view, now, other)]
            return fit(view, job, shut) is None and not ahead
        case Word.PRIORITY:
            promised = any(slot.kept_for not in (None, job.id) for slot in view.suitable(request))
            return promised or bool(_rivals(view, now, job))
        case Word.PREEMPTING:
            return bool(job.earmark)
        case Word.ARRAY_LIMIT:
            return view.array_full(job)
        case Word.CPU_JOBS:
            return view.cpu_running >= view.rules.cpu_jobs
        case Word.RESERVATION:
            own = view.reservations.get(request.reservation)
            return bool(shut) or (own is not None and not own.active(now.wall))
        case Word.FOREIGN_USE | Word.DEVICE_UNAVAILABLE:  # no device fails in these workloads
            return any(foreign_blocks(slot, request, view.rules.foreign_floor_mib) for slot in view.suitable(request))
        case Word.STARTING:
            return False  # the cycle is over, and it has not been started
    return limited(view, job) is not None


def _rivals(view: View, now: Instant, job: Job) -> list[Job]:
    """Who goes before it, and wants the same devices."""
    order, kind = scheduling_order(view, now), competes_for(view, job.spec.request)
    return [
        other for other in view.waiting()
        if order(other) < order(job) and not other.earmark
        and not competes_for(view, other.spec.request).isdisjoint(kind)
    ]  # fmt: skip


def _could_start(view: View, now: Instant, job: Job) -> bool:
    """It waits for devices only, and could have any of its kind."""
    held_back = view.array_full(job) or limited(view, job) is not None or closed(view, job, now)
    return not held_back and possible(view, job.spec.request)
