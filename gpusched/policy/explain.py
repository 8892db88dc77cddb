"""Why a job waits: one true reason, as data. `why`, `queue`, `--json` and the tests show the same.

Who is ahead of it and whom it could ask to leave is told in explain_ahead.py and explain_victims.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from gpusched.model.clock import Instant
from gpusched.model.dependency import Relation
from gpusched.model.device import Health
from gpusched.model.job import HoldKind, Job, Request
from gpusched.model.policy import PolicyName
from gpusched.model.state import StopKind
from gpusched.model.units import format_size
from gpusched.policy.explain_ahead import Ahead as Ahead
from gpusched.policy.explain_ahead import ahead as ahead
from gpusched.policy.explain_next import kept_free, reserved, what_next
from gpusched.policy.explain_victims import VictimVerdict as VictimVerdict
from gpusched.policy.explain_victims import victims as victims
from gpusched.policy.fit import fit, foreign_blocks, possible, room_for
from gpusched.policy.holdings import Slot
from gpusched.policy.kept import Kept, keep_for
from gpusched.policy.limits import limited
from gpusched.policy.priority import scheduling_order
from gpusched.policy.reserve import closed, competes_for, taken
from gpusched.policy.reserve_words import before_window, kept_from, of_device
from gpusched.policy.rights import over_quota, quota_text
from gpusched.policy.together import ever_together, instead
from gpusched.policy.view import View

_ENDS = "running jobs end or give devices back"
_MORE = "the jobs ahead start, and more end"


class Word(StrEnum):
    """Pending reasons: Slurm's words where it has them, then ours."""

    PRIORITY = "Priority"
    RESOURCES = "Resources"
    DEPENDENCY = "Dependency"
    DEPENDENCY_NEVER = "DependencyNeverSatisfied"
    BEGIN_TIME = "BeginTime"
    HELD_USER = "JobHeldUser"
    HELD_ADMIN = "JobHeldAdmin"
    HELD_SYSTEM = "JobHeldSystem"
    ARRAY_LIMIT = "JobArrayTaskLimit"
    PARTITION_TIME = "PartitionTimeLimit"
    RESERVATION = "Reservation"
    ASSOC_DEVICES = "AssocGrpGRES"
    ASSOC_RUNNING = "AssocGrpJobsLimit"
    USER_RUNNING = "AssocMaxJobsLimit"
    ASSOC_JOB_DEVICES = "AssocMaxGRESPerJob"
    ASSOC_TIME = "AssocMaxWallDurationPerJobLimit"
    QOS_DEVICES = "QOSGrpGRES"
    QOS_USER_DEVICES = "QOSMaxGRESPerUser"
    QOS_RUNNING = "QOSGrpJobsLimit"
    QOS_USER_RUNNING = "QOSMaxJobsPerUserLimit"
    QOS_JOB_DEVICES = "QOSMaxGRESPerJob"
    QOS_TIME = "QOSMaxWallDurationPerJobLimit"
    PARTITION_DEVICES = "PartitionDeviceLimit"
    PARTITION_RUNNING = "PartitionJobsLimit"
    CRON = "Cron"
    PREEMPTING = "Preempting"
    DEVICE_UNAVAILABLE = "DeviceUnavailable"
    FOREIGN_USE = "ForeignUse"
    CPU_JOBS = "CpuJobLimit"
    STARTING = "Starting"
    CLOSING = "ServiceStopping"


@dataclass(frozen=True, slots=True)
class Reason:
    word: Word
    text: str
    next: str  # what would have to happen


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    uuid: str
    index: int
    usable: bool
    text: str


def reason(view: View, job: Job, now: Instant) -> Reason:
    """The one reason for which a PENDING job does not run at this moment."""
    return _own_reason(view, job, now) or _device_reason(view, job, now, _Rivals(view, now))


def at_length(view: View, job: Job, now: Instant) -> Reason:
    """The same, with more of what would have to happen: who ends, or is asked to leave, and when."""
    found = reason(view, job, now)
    if found.word in (Word.RESOURCES, Word.PRIORITY) and found.next in (_MORE, _ENDS) and job.spec.request.gpus:
        following = what_next(view, job, _Rivals(view, now).first(job), now)
        return replace(found, next=following) if following else found
    return found


def _own_reason(view: View, job: Job, now: Instant) -> Reason | None:
    """Reasons that lie in the job itself."""
    spec = job.spec
    if job.hold is not None:
        word = {HoldKind.USER: Word.HELD_USER, HoldKind.ADMIN: Word.HELD_ADMIN, HoldKind.SYSTEM: Word.HELD_SYSTEM}
        text = job.hold.reason or "held"
        return Reason(word[job.hold.kind], text, f"release it: gpusched release {job.key}")
    if spec.cron is not None:
        return Reason(Word.CRON, f"submits a copy of itself at {spec.cron!r}", "its next time comes")
    if job.dependency_failed:
        return Reason(
            Word.DEPENDENCY_NEVER,
            f"its dependency {spec.dependency} can never be met",
            f"change it (gpusched update {job.key} --dependency '') or cancel the job",
        )
    if not job.dependency_met:
        singleton = spec.dependency is not None and all(
            c.relation is Relation.SINGLETON for c in spec.dependency.clauses
        )
        text = f"an earlier job named {spec.name!r} is unfinished" if singleton else f"waits for {spec.dependency}"
        return Reason(Word.DEPENDENCY, text, "the jobs it depends on get there")
    if spec.begin is not None and spec.begin > now.wall:
        return Reason(Word.BEGIN_TIME, "its begin time has not come", "its begin time comes")
    if view.array_full(job):
        limit = job.array.limit if job.array else 0
        return Reason(Word.ARRAY_LIMIT, f"{limit} elements of its array run already", "one of them ends")
    partition = view.rules.partitions.get(spec.request.partition)
    if partition is None:
        return Reason(
            Word.DEVICE_UNAVAILABLE,
            f"partition {spec.request.partition!r} no longer exists",
            f"move it: gpusched update {job.key} --partition NAME",
        )
    if partition.max_time is not None and (spec.time_limit is None or spec.time_limit > partition.max_time):
        return Reason(
            Word.PARTITION_TIME,
            f"its time limit is longer than partition {partition.name!r} allows",
            f"shorten it: gpusched update {job.key} --time …",
        )
    if waits := before_window(view, job, now):
        return Reason(Word.RESERVATION, *waits)
    if (at_limit := limited(view, job)) is not None:
        return Reason(Word(at_limit.word), at_limit.text, at_limit.next)
    if view.closing:
        return Reason(Word.CLOSING, "the service is shutting down", "it runs again")
    return None


def _device_reason(view: View, job: Job, now: Instant, rivals: _Rivals) -> Reason:
    request = job.spec.request
    if request.gpus == 0:
        if fit(view, job) is not None:
            return Reason(Word.STARTING, "it is about to start", "the next scheduling cycle, at once")
        return Reason(Word.CPU_JOBS, f"{view.cpu_running} CPU-only jobs run already", "one of them ends")
    if job.earmark:
        return _preempting(view, job)
    suitable = view.suitable(request)
    usable = [slot for slot in suitable if slot.device.usable]
    if len(usable) < request.gpus:
        bad = "; ".join(dict.fromkeys(_device_text(view, slot, job) for slot in suitable if not slot.device.usable))
        what = f"needs {request.gpus} suitable devices, {len(usable)} {'is' if len(usable) == 1 else 'are'} usable"
        return Reason(Word.DEVICE_UNAVAILABLE, f"{what} ({bad})" if bad else what, "a suitable device comes (back)")
    floor = view.rules.foreign_floor_mib
    foreign = [slot for slot in usable if foreign_blocks(slot, request, floor)]
    if len(usable) - len(foreign) < request.gpus:
        where = ", ".join(f"{s.device.index} ({format_size(s.device.foreign_mib)})" for s in foreign)
        return Reason(Word.FOREIGN_USE, f"processes outside gpusched use device {where}", "those processes end")
    if not possible(view, request):
        scattered = f"needs {request.gpus} suitable devices close together, those that are usable are not"
        if not ever_together(view, request):
            other = f"gpusched update {job.key} --gpus {instead(view, request)[0]}"
            return Reason(Word.DEVICE_UNAVAILABLE, scattered, f"it asks for another number of devices: {other}")
        return Reason(Word.DEVICE_UNAVAILABLE, scattered, "a suitable device comes back")
    shut = closed(view, job, now)
    open_now = [slot for slot in usable if room_for(slot, request, floor)]
    for able in (usable, open_now) if shut else ():
        left = [slot for slot in able if slot not in foreign and slot.device.uuid not in shut]
        if len(left) < request.gpus <= len(able):
            return Reason(Word.RESERVATION, *kept_from(view, job, now))
    open_now = [slot for slot in open_now if slot.device.uuid not in shut]
    kept = sorted({slot.kept_for for slot in open_now if slot.kept_for not in (None, job.id)})
    first = rivals.first(job)
    if len(open_now) >= request.gpus and kept:
        promised = f"free devices are being kept for job {_name(view, kept[0])}"
        return Reason(Word.PRIORITY, promised, "that job starts")
    if len(open_now) >= request.gpus and first is not None:
        return Reason(Word.PRIORITY, *kept_free(view, job, first, rivals.kept(first), now))
    apart = len(open_now) >= request.gpus and fit(view, job, shut) is None  # the policy packs gangs
    if len(open_now) >= request.gpus and not apart:
        return Reason(Word.STARTING, "it is about to start", "the next scheduling cycle, at once")
    need = f"needs {_count_text(request)}"
    if request.gpu_mem_mib:
        need += f" with {format_size(request.gpu_mem_mib)}{' to share' if request.shared else ''}"
    free = f"{len(open_now)} of {len(suitable)} free{', but not close together' if apart else ''}"
    if over_quota(view, job):
        free += f"; {quota_text(view, job)}, so it waits for what nobody else wants"
    if first is not None:
        return Reason(Word.PRIORITY, f"{need}, {free}; {rivals.ahead(first)}", _MORE)
    return Reason(Word.RESOURCES, f"{need}, {free}", _ENDS)


def _preempting(view: View, job: Job) -> Reason:
    leaving = sorted(
        {
            key.job_id
            for uuid in job.earmark
            if uuid in view.slots
            for key in view.slots[uuid].holders
        }
    )
    if not leaving:
        return Reason(Word.PREEMPTING, "its devices are being checked", "they are seen free")
    gives = [text for job_id in leaving if (text := _gives_text(view, job, job_id))]
    whole = [_name(view, job_id) for job_id in leaving if not _gives_text(view, job, job_id)]
    if whole:
        gives.insert(0, f"job {', '.join(whole)} saves and leaves its devices to it")
    return Reason(Word.PREEMPTING, "; ".join(gives), "it has left" if whole else "it has saved and goes on")


def _gives_text(view: View, job: Job, job_id: int) -> str:
    """`job 17 gives 2 of its 4 devices to it`, for an elastic job that goes on with fewer; else nothing."""
    other = view.jobs.get(job_id)
    if other is None or other.stop is None or other.stop.kind is not StopKind.RESIZE or other.stop.for_job != job.id:
        return ""
    return f"job {other.key} {other.stop.phrase().partition(' to job ')[0]} to it"


def _count_text(request: Request) -> str:
    """`2 devices`, `2 to 8 devices`, `1, 2 or 4 devices`."""
    if not request.elastic:
        return f"{request.gpus} device{'s' if request.gpus > 1 else ''}"
    if request.gpu_counts:
        return f"{', '.join(map(str, request.gpu_counts[:-1]))} or {request.gpu_counts[-1]} devices"
    return f"{request.gpus} to {request.most} devices"


class _Rivals:
    """Finds the waiting job that goes first of those that compete with a job. Looks at the queue once, when asked."""

    def __init__(self, view: View, now: Instant) -> None:
        self._view = view
        self._order = scheduling_order(view, now)
        self._now = now
        self._firsts: dict[frozenset[str], Job] | None = None
        self._kept: dict[int, Kept] = {}

    def kept(self, first: Job) -> Kept | None:
        """What backfill keeps for the first one."""
        if self._view.rules.policy.name is not PolicyName.BACKFILL:
            return None
        if first.id not in self._kept:
            self._kept[first.id] = keep_for(self._view, self._now, first)
        return self._kept[first.id]

    def ahead(self, first: Job) -> str:
        """`job 12 is ahead and has devices 0,1 reserved in about 25:00`."""
        kept = self.kept(first)
        when = reserved(self._view, kept, self._now) if kept is not None else ""
        return f"job {first.key} is ahead" + (f" and {when}" if when else "")

    def first(self, job: Job) -> Job | None:
        """The first waiting job in scheduling order, if it goes before `job` and waits for devices `job` could use."""
        if self._firsts is None:
            self._firsts = self._look()
        order, mine = self._order(job), competes_for(self._view, job.spec.request)
        rivals = [
            head for kind, head in self._firsts.items()
            if not kind.isdisjoint(mine) and self._order(head) < order
        ]  # fmt: skip
        return min(rivals, key=self._order, default=None)

    def _look(self) -> dict[frozenset[str], Job]:
        view, firsts = self._view, dict[frozenset[str], Job]()
        for bucket in view.buckets:
            head, kind = view.head(bucket), competes_for(view, bucket.request)
            best = firsts.get(kind)
            held_back = view.array_full(head) or limited(view, head) is not None or not self._can_ever(head)
            if not held_back and (best is None or self._order(head) < self._order(best)):
                firsts[kind] = head
        return firsts

    def _can_ever(self, head: Job) -> bool:
        """Nothing is kept for a job that could not be started even if all others left: each policy has its own view of
        what reservations have to do with that."""
        view, request, name = self._view, head.spec.request, self._view.rules.policy.name
        if not request.gpus:
            return True
        if name is PolicyName.BACKFILL:
            return possible(view, request)
        shut = taken(view, request) if name is PolicyName.FIT_FIRST else closed(view, head, self._now)
        return possible(view, request, shut)


def devices(view: View, job: Job, now: Instant) -> tuple[DeviceVerdict, ...]:
    """For every device: could the job have it now, and if not, why not. Nothing for a job that needs none."""
    if job.spec.request.gpus == 0:
        return ()
    verdicts = []
    for slot in sorted(view.slots.values(), key=lambda s: (s.device.index, s.device.uuid)):
        text = _device_text(view, slot, job) or of_device(view, job, slot.device.uuid, now)
        verdicts.append(DeviceVerdict(slot.device.uuid, slot.device.index, not text, text or "free"))
    return tuple(verdicts)


def _device_text(view: View, slot: Slot, job: Job) -> str:
    device, request = slot.device, job.spec.request
    if not view.suits(device, request):
        return f"not what it asks for ({device.name}, {format_size(device.total_mib)})"
    if device.health is not Health.OK:
        return f"device {device.index} {device.health}: {device.fault}".rstrip(": ")
    if device.drained:
        return f"drained: {device.drained}"
    if device.stale:
        return "its state is unknown: the driver does not answer"
    if slot.kept_for not in (None, job.id):
        return f"kept for job {_name(view, slot.kept_for)}"
    if slot.holders and not foreign_blocks(slot, request, view.rules.foreign_floor_mib):
        if not (request.shared and room_for(slot, request, 0)):
            return _holders_text(view, slot)
    elif not room_for(slot, request, view.rules.foreign_floor_mib):
        return f"{format_size(device.foreign_mib)} in use outside gpusched"
    return ""


def _holders_text(view: View, slot: Slot) -> str:
    held = ", ".join(_name(view, key.job_id) for key in slot.holders if key not in view.leaving)
    ended = ", ".join(_name(view, key.job_id) for key in slot.holders if key in view.leaving)
    texts = []
    if held:
        texts.append(f"held by job {held}")
    if ended:
        texts.append(f"job {ended} has ended, but the device is not seen free of it yet")
    return "; ".join(texts)


def _name(view: View, job_id: int | None) -> str:
    """The job's key; the engine may have let go of a job that has ended."""
    job = view.jobs.get(job_id) if job_id is not None else None
    return job.key if job else str(job_id)


def reasons(view: View, jobs: list[Job], now: Instant) -> dict[int, Reason]:
    """The reason of each of many waiting jobs. Jobs of one bucket share the look at the devices."""
    rivals = _Rivals(view, now)
    of_head: dict[int, Reason] = {}
    found: dict[int, Reason] = {}
    for job in jobs:
        own = _own_reason(view, job, now)
        if own is not None:
            found[job.id] = own
            continue
        waiting = view.buckets.get(view.bucket(job))
        if waiting is None or waiting.entries[0][1] == job.id or job.earmark:
            found[job.id] = _device_reason(view, job, now, rivals)
            continue
        head = view.jobs[waiting.entries[0][1]]
        if view.reservations and closed(view, head, now) != closed(view, job, now):
            found[job.id] = _device_reason(view, job, now, rivals)
            continue
        if head.id not in of_head:
            of_head[head.id] = _device_reason(view, head, now, rivals)
        its = of_head[head.id]
        if its.word is Word.STARTING:  # this one waits for it to have started
            found[job.id] = _device_reason(view, job, now, rivals)
            continue
        behind = its.word is Word.RESOURCES
        found[job.id] = Reason(Word.PRIORITY, f"{its.text}; {rivals.ahead(head)}", _MORE) if behind else its
    return found
