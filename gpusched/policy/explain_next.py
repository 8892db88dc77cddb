"""For whom free devices are kept, and what would have to happen for a waiting job to start, with times where known."""

from __future__ import annotations

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.policy import PolicyName
from gpusched.model.units import format_duration
from gpusched.policy.expected import basis, time_left
from gpusched.policy.explain_victims import victims
from gpusched.policy.kept import Kept, keep_for, no_more, time_wanted
from gpusched.policy.slices import asks_at, on_grid
from gpusched.policy.view import View

_WORTH_A_HINT = 60.0  # seconds: nobody shortens a job to less
_NAMED = 3  # jobs that a sentence names


def about(seconds: float) -> str:
    """`25:00`: whole minutes, where seconds would only pretend."""
    return format_duration(max(0.0, seconds if seconds < 600 else round(seconds / 60) * 60))


def reserved(view: View, kept: Kept, now: Instant) -> str:
    """`has devices 0,1 reserved in about 25:00`; empty: nobody knows when it could start."""
    if kept.until is None or kept.guessed:
        return ""
    indexes = sorted(view.slots[uuid].device.index for uuid in kept.devices)
    many = "s" * (len(indexes) > 1)
    return f"has device{many} {','.join(map(str, indexes))} reserved in about {about(kept.until - now.boot)}"


def kept_free(view: View, job: Job, first: Job, kept: Kept | None, now: Instant) -> tuple[str, str]:
    """Of a job that would fit, but the free devices are kept for `first`: the reason, and what must happen.

    kept: what backfill keeps for `first`.
    """
    name = view.rules.policy.name
    if kept is not None and kept.until is not None and kept.guessed and not no_more(view, kept):
        wanted, _ = time_wanted(view, job)
        text = f"free devices are being kept for job {first.key}: nobody knows when those end that it waits for"
        return text, f"that job starts, or they run for another {about(wanted - (kept.until - now.boot))}"
    if kept is not None and kept.until is not None and not kept.guessed:
        needs = time_left(view, job)
        window = kept.until - now.boot
        mine = "nobody knows how long this one runs" if needs is None else f"this one may run for {about(needs)}"
        text = f"job {first.key} is ahead and {reserved(view, kept, now)}; {mine}"
        shorter = f", or this one needs less time: gpusched update {job.key} --time {format_duration(window)}"
        return text, "that job starts" + (shorter if window >= _WORTH_A_HINT else "")
    text = f"free devices are being kept for job {first.key}"
    if name in (PolicyName.BACKFILL, PolicyName.FIT_FIRST) and first.bypassed:
        text += f": {first.bypassed} later jobs have gone past it"
    elif name in (PolicyName.FIFO, PolicyName.SJF):
        text += f": nobody goes past it ({name})"
    elif view.rules.policy.tick_starts and not on_grid(view.rules.policy.tick, now.boot):
        wait = asks_at(view, now).boot - now.boot
        return "jobs start at the ticks of the policy only", f"the next tick, in {wait:.0f} s"
    return text, "that job starts"


def what_next(view: View, job: Job, first: Job | None, now: Instant) -> str:
    """What would have to happen for a job that waits for devices. first: the first of those who wait before it."""
    if view.rules.policy.name.preemptive:
        asked = [verdict for verdict in victims(view, job, now) if verdict.preemptible]
        if asked:
            alike = [verdict for verdict in asked if verdict.text == asked[0].text]
            names = ", ".join(view.jobs[verdict.job_id].key for verdict in alike[:_NAMED])
            return _said_of(names, asked[0].text, many=len(alike) > 1)
        return ""
    whose = first or job
    kept = keep_for(view, now, whose)
    if kept.until is None:
        return ""
    ending = sorted(
        {key.job_id for uuid in kept.devices for key in view.slots[uuid].holders if key.job_id in view.live}
    )
    names = ", ".join(_with_basis(view, view.jobs[i]) for i in ending[:_NAMED])
    more = f" and {len(ending) - _NAMED} more" if len(ending) > _NAMED else ""
    if not names:
        return ""
    when = "nobody knows when" if kept.guessed else f"in about {about(kept.until - now.boot)}"
    what = f"job{'s' * (len(ending) > 1)} {names}{more} end{'s' * (len(ending) == 1)}, {when}"
    return what if first is None else f"{what}, then job {first.key} starts, and more end"


def _said_of(names: str, text: str, many: bool) -> str:
    """`job 17 is asked to leave next`, `jobs 17, 18 are asked …`, `job 17: it can go on without 2 of its 4 devices`."""
    job = f"job{'s' * many} {names}"
    if text.startswith("is "):
        return f"{job} {'are ' if many else 'is '}{text[3:]}"
    return f"{job}: {text}"


def _with_basis(view: View, job: Job) -> str:
    """`12 (its time limit)`."""
    known = basis(view, job)
    return f"{job.key} ({known})" if known else job.key
