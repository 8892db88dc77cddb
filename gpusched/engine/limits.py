"""Limits at the door: what may be submitted, changed or requeued at all.

Refused is what could never run, and one job more than somebody may have in the queue. What merely has to wait is for
policy/limits.py to say, cycle by cycle. A job that is in the queue already, and over a limit that the configuration has
got since, is never refused anything that makes it no worse.
"""

from __future__ import annotations

from gpusched.model.errors import Refused, UsageError
from gpusched.model.job import Job
from gpusched.model.limits import WHOLE, Limits, Scope
from gpusched.model.rules import Rules
from gpusched.model.units import format_duration
from gpusched.policy.limits import devices_text, need, raised, used_up
from gpusched.policy.view import View


def usual_time(rules: Rules, job: Job) -> float | None:
    """The time limit, in seconds, of a job that asks for none: the longest that all its limits allow."""
    if not rules.limits:
        return None
    allowed = (limits.max_time for _, limits in rules.limits.scopes(job))
    return min((seconds for seconds in allowed if seconds is not None), default=None)


def check_new(view: View, job: Job, count: int = 1) -> None:
    """Refuse a job (an array: of `count` elements) that could never run, or that is too much for the queue.

    Raises UsageError for the one, Refused for the other; both name the limit and what is used of it.
    """
    usage = view.in_use
    if not usage.active:
        return
    for scope, limits in usage.rules.scopes(job):
        _check_ever(view, job, scope, limits)
    for tally in usage.of(job):
        _check_jobs(view, tally.scope, tally.limits, tally.jobs, count)


def check_changed(view: View, job: Job, changed: Job) -> None:
    """Refuse a change of a job that is in the queue, or runs, if it would bring it over a limit.

    Raises UsageError for what could then never run, Refused for what others have used up.
    """
    usage = view.in_use
    if not usage.active:
        return
    spec, new = job.spec, changed.spec
    if (spec.request, spec.time_limit, spec.qos) == (new.request, new.time_limit, new.qos):
        return
    before = set(usage.rules.scopes(job))
    for scope, limits in usage.rules.scopes(changed):
        if (scope, limits) not in before or _asks_for_more(job, changed):
            _check_ever(view, changed, scope, limits)
    entered = [tally for tally in usage.of(changed) if (tally.scope, tally.limits) not in before]
    for tally in entered:
        _check_jobs(view, tally.scope, tally.limits, tally.jobs, 1)
    if job.state.live and (why := used_up(view, changed, entered)) is not None:
        raise Refused(f"job {job.key} cannot change there while it runs: {why.text}", why.next)


def _asks_for_more(job: Job, changed: Job) -> bool:
    before, after = job.spec.time_limit, changed.spec.time_limit
    longer = before is not None and (after is None or after > before)
    return longer or changed.spec.request != job.spec.request


def _check_ever(view: View, job: Job, scope: Scope, limits: Limits) -> None:
    """Raises UsageError for a job that this limit keeps from ever running."""
    rules, request, time = view.rules.limits, job.spec.request, job.spec.time_limit
    if limits.users is not None and job.owner.user not in limits.users:
        listed = ", ".join(limits.users) or "nobody"
        hint = f"leave --account out, or an administrator adds {job.owner.user} to users of [{rules.section(scope)}]"
        raise UsageError(f"{scope} is not for user {job.owner.user}, but for {listed}", hint)
    if limits.max_job_devices is not None and request.gpus > limits.max_job_devices:
        least = "at least " if request.elastic else ""
        message = f"it asks for {least}{request.gpus} devices, and a job of {scope} may have at most"
        hint = raised(rules, scope, "max_job_devices")
        raise UsageError(f"{message} {limits.max_job_devices} (max_job_devices)", f"ask for fewer, or {hint}")
    if limits.max_devices is not None and request.gpus and need(view, job) > round(limits.max_devices * WHOLE):
        wanted, most = devices_text(need(view, job)), f"{limits.max_devices:g}"
        message = f"it asks for {wanted} device{'s' * (wanted != '1')}, and {scope} may use at most {most} at once"
        hint = raised(rules, scope, "max_devices")
        raise UsageError(f"{message} (max_devices)", f"ask for fewer, or {hint}")
    if limits.max_running == 0:
        hint = raised(rules, scope, "max_running")
        raise UsageError(f"{scope} may run no jobs at all (max_running = 0)", hint)
    if limits.max_time is not None and (time is None or time > limits.max_time):
        what = "without a time limit" if time is None else f"with a time limit of {format_duration(time)}"
        most = format_duration(limits.max_time)
        message = f"a job {what} is too long: {scope} may ask for at most {most} (max_time)"
        raise UsageError(message, f"give at most --time {most}, or {raised(rules, scope, 'max_time')}")


def _check_jobs(view: View, scope: Scope, limits: Limits, have: int, count: int) -> None:
    """Raises Refused for more jobs in the queue than the limit allows."""
    most = limits.max_jobs
    if most is None or have + count <= most:
        return
    more = f"this array has {count} elements" if count > 1 else "this is one more"
    hint = raised(view.rules.limits, scope, "max_jobs")
    wait = "wait until some have ended" if most else "nothing may be submitted there"
    has = f"{scope} has {have} of at most {most} waiting and running jobs (max_jobs)"
    raise Refused(f"{has}, and {more}", f"{wait}, or {hint}")
