"""Hard limits: may this job start now, and if not, whose limit keeps it, who uses it up, and what has to happen.

A job at a limit is passed: it blocks nobody behind it, and its being passed is not counted. Which of several limits is
told is settled by their order: users first, then groups, accounts, levels and partitions (LimitRules.scopes). The words
are Slurm's where it has them: Assoc… for who submitted, QOS… for the level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpusched.model.job import Job
from gpusched.model.limits import WHOLE, Kind, LimitRules, Limits, Scope
from gpusched.model.units import format_duration
from gpusched.policy.usage import Tally

if TYPE_CHECKING:
    from gpusched.policy.view import View

_NAMED = 5  # jobs that a reason names; it counts the others


@dataclass(frozen=True, slots=True)
class Limited:
    """The limit that keeps a job from starting. The sentences are made when they are read: most are never read."""

    word: str  # one of explain.Word
    scope: Scope
    _text: Callable[[], str]
    _next: Callable[[], str]

    @property
    def text(self) -> str:
        """Which limit, how much of it is used, and by which jobs."""
        return self._text()

    @property
    def next(self) -> str:
        """What has to happen, and who can change the limit."""
        return self._next()


def limited(view: View, job: Job) -> Limited | None:
    """The limit that forbids the job to start now, or None."""
    usage = view.in_use
    if not usage.active:
        return None
    tallies = usage.of(job)
    if not tallies:
        return None
    never = forbidden(usage.rules, job, ((t.scope, t.limits) for t in tallies))
    return never or used_up(view, job, tallies) or _kept(view, job, tallies)


def forbidden(rules: LimitRules, job: Job, scopes: Iterable[tuple[Scope, Limits]] | None = None) -> Limited | None:
    """The limit that this job could never keep, whatever the others do, or None."""
    gpus, time = job.spec.request.gpus, job.spec.time_limit
    for scope, limits in rules.scopes(job) if scopes is None else scopes:
        if limits.max_time is not None and (time is None or time > limits.max_time):
            return _too_long(rules, job, scope, limits.max_time)
        if limits.max_job_devices is not None and gpus > limits.max_job_devices:
            return _too_large(rules, job, scope, limits.max_job_devices)
    return None


def headroom(view: View, job: Job) -> int | None:
    """The most devices that the job may hold under its limits as things are, for one that takes what it can get.

    None: no limit. What it holds itself, or is promised, is not counted against it.
    """
    most: int | None = None
    if not view.in_use.active:
        return None
    for tally in view.in_use.of(job):
        mine = tally.holders.get(job.id, 0)
        free = [tally.limits.max_job_devices]
        if tally.most_parts is not None:
            kept = _keeper(view, job, tally) is not None
            free.append(mine // WHOLE if kept else max(0, tally.most_parts - (tally.parts - mine)) // WHOLE)
        most = min((n for n in (most, *free) if n is not None), default=None)
    return most


def need(view: View, job: Job) -> int:
    """Parts of devices that a job holds or is promised; else what it will take at least. A share is largest on the
    smallest suitable device."""
    request = job.spec.request
    if held := view.in_use.held(job):
        return held
    if not request.shared or request.gpu_mem_mib is None:
        return request.gpus * WHOLE
    smallest = min((s.device.total_mib for s in view.suitable(request) if s.device.total_mib > 0), default=0)
    if smallest <= 0:
        return request.gpus * WHOLE
    return request.gpus * min(WHOLE, request.gpu_mem_mib * WHOLE // smallest)


def used_up(view: View, job: Job, tallies: Iterable[Tally]) -> Limited | None:
    """The first of these limits that leaves no room for the job now, because of what others use."""
    for tally in tallies:
        if (what := full(view, job, tally)) == "running":
            return _running(view, job, tally, tally.limits.max_running or 0)
        if what == "devices":
            return _devices(view, job, tally)
    return None


def full(view: View, job: Job, tally: Tally) -> str:
    """What a limit has no room for, if the job came to those who use it: "running", "devices", or nothing."""
    mine, most = tally.holders.get(job.id, 0), tally.limits.max_running
    if most is not None and tally.running - (job.id in tally.holders) >= most:
        return "running"
    if tally.most_parts is None or not job.spec.request.gpus:
        return ""
    return "devices" if tally.parts - mine + need(view, job) > tally.most_parts else ""


def _keeper(view: View, job: Job, tally: Tally) -> Job | None:
    """Who stands before this job and waits for what is left of the limit, which is kept for him."""
    if tally.kept_for is None or tally.kept_for == job.id:
        return None
    other = view.jobs.get(tally.kept_for)
    waits = other is not None and view.place(other) is not None
    return other if waits and other is not None and view.order(other) < view.order(job) else None


def _kept(view: View, job: Job, tallies: Iterable[Tally]) -> Limited | None:
    """The first of these limits of which the job may have nothing, because it is kept for one past its patience."""
    for tally in tallies:
        if tally.kept_for is None or job.id in tally.holders or (other := _keeper(view, job, tally)) is None:
            continue
        what = full(view, other, tally)
        if what == "running" or (what == "devices" and job.spec.request.gpus):
            return _kept_for(view, tally, what, other)
    return None


# ---- the sentences ----------------------------------------------------------------------------------------------

_WORDS = {  # what is used up: of whoever submitted, of a level, of one user in a level, of a partition
    "devices": ("AssocGrpGRES", "QOSGrpGRES", "QOSMaxGRESPerUser", "PartitionDeviceLimit"),
    "running": ("AssocGrpJobsLimit", "QOSGrpJobsLimit", "QOSMaxJobsPerUserLimit", "PartitionJobsLimit"),
    "job": ("AssocMaxGRESPerJob", "QOSMaxGRESPerJob", "QOSMaxGRESPerJob", "PartitionDeviceLimit"),
    "time": ("AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit",
             "PartitionTimeLimit"),
}  # fmt: skip


def _word(what: str, scope: Scope) -> str:
    if scope.kind is Kind.PARTITION:
        return _WORDS[what][3]
    if scope.kind is Kind.QOS:
        return _WORDS[what][2 if scope.user else 1]
    if what == "running" and (scope.kind is Kind.USER or scope.user):
        return "AssocMaxJobsLimit"
    return _WORDS[what][0]


def _devices(view: View, job: Job, tally: Tally) -> Limited:
    def text() -> str:
        mine = tally.holders.get(job.id, 0)
        used, most = devices_text(tally.parts - mine), devices_text(tally.most_parts or 0)
        by, wanted = _by(view, tally, job), devices_text(need(view, job))
        return f"{tally.scope} uses {used} of at most {most} device{'s' * (most != '1')}{by}; it needs {wanted}"

    rules = view.in_use.rules
    return Limited(_word("devices", tally.scope), tally.scope, text, _ends_or_raised(rules, tally, "max_devices"))


def _running(view: View, job: Job, tally: Tally, most: int) -> Limited:
    def text() -> str:
        others = tally.running - (job.id in tally.holders)
        return f"{tally.scope} runs {others} of at most {most} job{'s' * (most != 1)}{_by(view, tally, job)}"

    rules = view.in_use.rules
    return Limited(_word("running", tally.scope), tally.scope, text, _ends_or_raised(rules, tally, "max_running"))


def _kept_for(view: View, tally: Tally, what: str, other: Job) -> Limited:
    def text() -> str:
        patience = format_duration(view.rules.policy.patience)
        left = "devices" if what == "devices" else "jobs"
        return f"more {left} of {tally.scope} are kept for job {other.key}, which has waited longer than {patience}"

    rules, setting = view.in_use.rules, "max_devices" if what == "devices" else "max_running"
    change = raised(rules, tally.scope, setting)
    return Limited(_word(what, tally.scope), tally.scope, text, lambda: f"that job starts, or {change}")


def _too_large(rules: LimitRules, job: Job, scope: Scope, most: int) -> Limited:
    def text() -> str:
        return f"it asks for {job.spec.request.gpus} devices, and a job of {scope} may have at most {most}"

    def change() -> str:
        return f"ask for fewer (gpusched update {job.key} --gpus {most}), or {raised(rules, scope, 'max_job_devices')}"

    return Limited(_word("job", scope), scope, text, change)


def _too_long(rules: LimitRules, job: Job, scope: Scope, most: float) -> Limited:
    def text() -> str:
        asked = job.spec.time_limit
        what = "it has no time limit" if asked is None else f"its time limit is {format_duration(asked)}"
        return f"{what}, and a job of {scope} may have at most {format_duration(most)}"

    def change() -> str:
        shorter = f"gpusched update {job.key} --time {format_duration(most)}"
        return f"shorten it ({shorter}), or {raised(rules, scope, 'max_time')}"

    return Limited(_word("time", scope), scope, text, change)


def _ends_or_raised(rules: LimitRules, tally: Tally, setting: str) -> Callable[[], str]:
    many = "one of these jobs ends" if tally.holders else "there is no other way"
    return lambda: f"{many}, or {raised(rules, tally.scope, setting)}"


def raised(rules: LimitRules, scope: Scope, setting: str) -> str:
    """Who can change a limit, and where."""
    name = f"{setting}_per_user" if scope.user else setting
    return f"an administrator raises {name} of [{rules.section(scope)}] in the configuration"


def _by(view: View, tally: Tally, job: Job) -> str:
    ids = sorted(job_id for job_id in tally.holders if job_id != job.id)
    if not ids:
        return ""
    names = ", ".join(view.jobs[job_id].key for job_id in ids[:_NAMED])
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f" (job{'s' * (len(ids) > 1)} {names}{more})"


def devices_text(size: int) -> str:
    """Parts of devices as people write them: 2, or 0.25."""
    return f"{size / WHOLE:.2f}".rstrip("0").rstrip(".")
