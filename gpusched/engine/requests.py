"""What people ask of jobs that exist: one function per verb, each for one job, with a sentence as the answer.

Who may do what is decided in `authorise`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpusched.engine.attempts import MOST_PATIENCE, ask_to_stop, grace, kill_now
from gpusched.engine.dependencies import (
    Met,
    by_element,
    check_known,
    check_no_cycle,
    evaluate,
    look_again,
    tell_dependents,
)
from gpusched.engine.following import follow, unfollow
from gpusched.engine.likes import check_likes
from gpusched.engine.limits import check_changed, check_new
from gpusched.engine.parts import Part, parts_of
from gpusched.engine.reservations import check_reservation, present_spec
from gpusched.engine.submit import check_nice, check_request, check_time
from gpusched.engine.turn import Turn
from gpusched.model.actions import Ask, Asked
from gpusched.model.changes import Answer
from gpusched.model.dependency import Relation, parse_dependency
from gpusched.model.errors import GpuschedError, NotAllowed, NotFound, Refused, UsageError
from gpusched.model.events import (
    CancelRequested,
    CheckpointRequested,
    HoldRequested,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    UpdateRequested,
)
from gpusched.model.gpu_count import elastic_count
from gpusched.model.job import Caller, Hold, HoldKind, Job, JobSpec, Request
from gpusched.model.state import JobState, Stop, StopKind
from gpusched.model.units import format_duration, format_size

JobRequest = (
    CancelRequested
    | HoldRequested
    | ReleaseRequested
    | RequeueRequested
    | PreemptRequested
    | CheckpointRequested
    | UpdateRequested
)
Verb = Callable[[Turn, Part, Caller], str]


def authorise(caller: Caller, job: Job) -> None:
    """Owner or administrator; anybody else is refused."""
    if not caller.admin and caller.uid != job.owner.uid:
        raise NotAllowed(f"job {job.key} belongs to {job.owner.user}", "ask its owner or an administrator")


def on_request(turn: Turn, event: JobRequest) -> tuple[Answer, ...]:
    """Carry out the request for everything that the keys name; each row gets one answer, however often it is named."""
    turn.recall(event.recalled)
    answers: list[Answer] = []
    done: set[int] = set()
    for key in dict.fromkeys(event.keys):
        parts, missing = parts_of(turn.state, key)
        if missing is not None:
            answers.append(Answer(missing, error=NotFound(f"there is no job {missing}", "see: gpusched queue --all")))
        several = sum(part.job.size for part in parts) > 1
        meant = [part for part in parts if not several or _is_meant(event, part.row)]
        for part in meant:
            if part.job.id not in done and part.row.id not in done:
                done.add(part.job.id)
                answers.append(_one(turn, event, part))
        if parts and not meant:
            answers.append(Answer(key, error=Refused(_NOTHING_MEANT[isinstance(event, RequeueRequested)].format(key))))
    return tuple(answers)


def _is_meant(event: JobRequest, job: Job) -> bool:
    """Of an array, only the elements to which the request can apply are meant."""
    if isinstance(event, RequeueRequested):
        return job.state is not JobState.PENDING
    return not job.state.final


_NOTHING_MEANT = ("every element of array {} has ended already", "every element of array {} is waiting already")


def _one(turn: Turn, event: JobRequest, part: Part) -> Answer:
    key = part.job.key
    try:
        authorise(event.caller, part.job)
        if isinstance(event, UpdateRequested):
            return Answer(key, _update(turn, part, event))
        return Answer(key, _VERBS[type(event)](turn, part, event.caller))
    except GpuschedError as error:
        return Answer(key, error=error)


def _cancel(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    if job.state.final:
        raise Refused(
            f"job {job.key} has ended already ({job.state})", f"see how it ended: gpusched show {job.key}"
        )
    if job.state is JobState.PENDING:
        because = f"cancelled by {caller.user}"
        for row in part.apart(turn):
            row = turn.put_job(
                row, state=JobState.CANCELLED, ended_at=turn.now.wall, ended_because=because, earmark=(), hold=None
            )
            turn.tell(row, "cancelled", because, caller.user)
        return "cancelled"
    if job.stop is not None and job.stop.kind is StopKind.CANCEL:
        kill_now(turn, job, f"cancelled again by {caller.user}: killed at once")
        return "killed at once (it was being cancelled already)"
    patience = min(grace(turn, job), MOST_PATIENCE)
    job = ask_to_stop(turn, job, Stop(StopKind.CANCEL, turn.now.boot + patience, by=caller.user))
    assert job.stop is not None
    left = max(0.0, job.stop.deadline - turn.now.boot)  # less, if it was being stopped already
    return f"asked to stop; killed in {left:.0f} s if it has not (cancel again to kill it at once)"


def _hold(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    if job.state is not JobState.PENDING:
        raise Refused(
            f"job {job.key} is {job.state}, only waiting jobs can be held",
            f"to take a running one back first: gpusched requeue {job.key}" if job.state.live else "",
        )
    foreign = caller.admin and caller.uid != job.owner.uid
    if job.hold is not None and (not foreign or job.hold.kind is HoldKind.ADMIN):
        return "held already"
    kind = HoldKind.ADMIN if foreign else HoldKind.USER
    for row in part.apart(turn):
        row = turn.put_job(row, hold=Hold(kind, f"held by {caller.user}"), earmark=())
        turn.tell(row, "held", f"held by {caller.user}", caller.user)
    return "held"


def _release(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    if job.hold is None:
        raise Refused(f"job {job.key} is not held", f"see what it does or waits for: gpusched why {job.key}")
    if job.hold.kind is HoldKind.ADMIN and not caller.admin:
        raise NotAllowed(f"job {job.key} is held by an administrator ({job.hold.reason})", "ask them to release it")
    for row in part.apart(turn):
        row = turn.put_job(row, hold=None, unasked_requeues=0, failed_starts=0, losses=0)
        turn.tell(row, "released", f"released by {caller.user}", caller.user)
    return "released"


def _requeue(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    if job.state is JobState.PENDING:
        raise Refused(f"job {job.key} is waiting already", f"see what for: gpusched why {job.key}")
    if job.state.live:
        _ask_back(turn, job, caller, StopKind.REQUEUE)
        return "asked to save and leave; it then waits again"
    if job.spec.cron is not None:
        raise Refused(f"job {job.key} was a --cron job", f"start it anew: gpusched resubmit {job.key}")
    check_new(turn.view, job, job.size)
    for row in part.apart(turn):
        # a dependency that was good enough for the first start is not asked for again
        row = turn.put_job(
            row, state=JobState.PENDING, ended_at=None, ended_because="", hold=None, dependency_met=True,
            dependency_failed=False, restarts=row.restarts + 1, unasked_requeues=0, losses=0, eligible_at=None,
            spec=present_spec(turn.view, row),
        )
        tell_dependents(turn, (row,))
        turn.tell(row, "requeued", f"requeued by {caller.user}", caller.user)
    return "waits again" + (f", from its checkpoint {job.saved.checkpoint}" if job.saved else "")


def _preempt(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    if not job.state.live:
        raise Refused(
            f"job {job.key} is {job.state}: it has no device to give back", f"see: gpusched show {job.key}"
        )
    _ask_back(turn, job, caller, StopKind.YIELD)
    return "asked to save and give its devices back; it keeps its place in the queue"


def _ask_back(turn: Turn, job: Job, caller: Caller, kind: StopKind) -> None:
    if job.state is JobState.STOPPING and job.stop is not None:
        raise Refused(
            f"job {job.key} is leaving already: {job.stop.phrase()}",
            f"wait a moment, or end it for good: gpusched cancel {job.key}",
        )
    ask_to_stop(turn, job, Stop(kind, turn.now.boot + grace(turn, job), by=caller.user))


def _checkpoint(turn: Turn, part: Part, caller: Caller) -> str:
    job = part.job
    attempt = turn.state.view.live.get(job.id)
    if job.state is not JobState.RUNNING or attempt is None:
        raise Refused(
            f"job {job.key} is {job.state}: only a running job can save", f"see what it does: gpusched why {job.key}"
        )
    if not attempt.watching:
        raise Refused(
            f"job {job.key} does not watch for requests, so it cannot be asked to save and go on",
            "use gpusched.checkpoint in its script (docs/checkpointing.md)",
        )
    turn.act(Ask(attempt.key, Asked.SAVE, f"asked by {caller.user}", None, job.spec.signal))
    turn.tell(job, "asked-to-save", f"asked by {caller.user} to save now", caller.user)
    return "asked to save; it goes on running"


def _said(name: str, value: Any) -> str:
    """A change in words that its user would write: `time_limit = 3:00`, `no dependency`."""
    match name, value:
        case "begin", _:  # a wall clock time; only those who show it know the time zone
            return "another begin time" if value else "no begin time"
        case ("time_limit" | "expected" | "gpu_mem_mib" | "gpu_type" | "dependency" | "reservation"), (0 | ""):
            return f"no {name}"
        case "time_limit" | "expected", _:
            return f"{name} = {format_duration(value)}"
        case "gpu_mem_mib", _:
            return f"gpu_mem = {format_size(value)}"
    return f"{name} = {value}"


_VERBS: dict[type, Verb] = {
    CancelRequested: _cancel,
    HoldRequested: _hold,
    ReleaseRequested: _release,
    RequeueRequested: _requeue,
    PreemptRequested: _preempt,
    CheckpointRequested: _checkpoint,
}
_WHILE_LIVE = ("name", "qos", "comment", "time_limit", "expected", "requeue")


def _update(turn: Turn, part: Part, event: UpdateRequested) -> str:
    job = part.job
    if job.state.final:
        raise Refused(f"job {job.key} has ended already ({job.state})", f"run it again: gpusched resubmit {job.key}")
    asked = {name: getattr(event, name) for name in _FIELDS if getattr(event, name) is not None}
    if not asked:
        raise UsageError("nothing to change", "see: gpusched update --help")
    if job.state.live:
        for name in asked:
            if name not in _WHILE_LIVE:
                raise Refused(
                    f"job {job.key} is {job.state}: {name} can change only while it waits",
                    f"while it runs you can change: {', '.join(_WHILE_LIVE)}",
                )
    if job.spec.cron is not None and "begin" in asked:
        raise Refused(f"job {job.key} runs at the times of its --cron line", "cancel it and submit it with another")
    if "nice" in asked:
        check_nice(asked["nice"], event.caller)
    spec = _changed_spec(turn, job, asked)
    check_changed(turn.view, job, replace(job, spec=spec))
    if asked.keys() & _COUNT:
        asked = {"gpus": spec.request.counts_text, **{n: value for n, value in asked.items() if n not in _COUNT}}
    said = ", ".join(_said(name, value) for name, value in asked.items())
    for row in part.apart(turn):  # before a circle is looked for: that goes from row to row
        _change(turn, row, spec, said, event.caller)
    return f"changed: {said}"


def _change(turn: Turn, job: Job, spec: JobSpec, said: str, caller: Caller) -> None:
    """Give a row another spec. Raises what `_depend_anew` raises."""
    changes: dict[str, Any] = {"spec": spec}
    if job.state is JobState.PENDING:
        changes |= _depend_anew(turn, job, replace(job, spec=spec))
    if spec.request != job.spec.request or spec.qos != job.spec.qos:
        changes["earmark"] = ()
    if "dependency_met" in changes:
        unfollow(turn.state, job)
    job = turn.put_job(job, **changes)
    follow(turn.state, job)
    turn.tell(job, "updated", f"{said} (by {caller.user})", caller.user)
    if job.folded:
        look_again(turn, job)  # its elements may differ in what they wait for


_FIELDS = (
    "name", "qos", "comment", "time_limit", "expected", "nice", "begin", "gpus", "gpus_max", "gpu_counts",
    "gpu_mem_mib", "gpu_type", "partition", "reservation", "dependency", "requeue",
)
_COUNT = {"gpus", "gpus_max", "gpu_counts"}


def _changed_spec(turn: Turn, job: Job, asked: dict[str, object]) -> JobSpec:
    spec, request = job.spec, job.spec.request
    for name, value in asked.items():
        match name:
            case "qos":
                turn.rules.level(str(value))
                spec = replace(spec, qos=str(value))
            case "time_limit" | "begin" | "expected":
                spec = replace(spec, **{name: value or None})  # type: ignore[arg-type]
            case "gpus" | "gpus_max" | "gpu_counts":
                pass  # these go together
            case "gpu_mem_mib" | "gpu_type" | "partition" | "reservation":
                empty = name in ("gpu_mem_mib", "gpu_type") and not value
                request = replace(request, **{name: None if empty else value})  # type: ignore[arg-type]
            case "dependency":
                dependency = parse_dependency(str(value)) if value else None
                if dependency is not None:
                    dependency = by_element(turn.state, dependency)
                    check_known(turn.state, dependency, job.key)
                    check_likes(turn.state, dependency, job.elements)
                spec = replace(spec, dependency=dependency)
            case _:
                spec = replace(spec, **{name: value})  # type: ignore[arg-type]
    request = _with_count(request, asked)
    if request != job.spec.request:
        turn.rules.partition(request.partition)  # that of a job that waits may not exist any more
        check_reservation(turn.view, replace(job, spec=replace(spec, request=request)))
        check_request(turn.view, request)
    if "time_limit" in asked or "partition" in asked:
        partition = turn.rules.partition(request.partition)
        spec = replace(spec, time_limit=partition.time_limit(spec.time_limit))
        check_time(partition, spec.time_limit)
    return replace(spec, request=request)


def _with_count(request: Request, asked: dict[str, Any]) -> Request:
    """Another number of GPUs. Raises UsageError for one that contradicts itself."""
    if not asked.keys() & _COUNT:
        return request
    least, most, only = request.gpus, request.gpus_max, request.gpu_counts
    count = elastic_count(asked.get("gpus", least), asked.get("gpus_max", most), asked.get("gpu_counts", only))
    return replace(request, gpus=count.least, gpus_max=count.most, gpu_counts=count.only)


def _depend_anew(turn: Turn, job: Job, changed: Job) -> dict[str, Any]:
    """The dependency flags of a waiting job after its dependency or its name has changed.

    Raises UsageError for a circle, Refused for what can never be met (if that would cancel the job).
    """
    if changed.spec.name != job.spec.name or changed.spec.dependency != job.spec.dependency:
        check_no_cycle(turn.state, changed)
    dependency = changed.spec.dependency
    named_anew = changed.spec.name != job.spec.name and dependency is not None and any(
        clause.relation is Relation.SINGLETON for clause in dependency.clauses
    )
    if dependency == job.spec.dependency and not named_anew:
        return {}
    met = evaluate(turn.state, changed)
    if met is Met.NEVER and changed.spec.cancel_on_bad_dependency:
        raise Refused(f"dependency {dependency} can never be met", "name jobs that can still get there")
    return {"dependency_met": met is Met.YES, "dependency_failed": met is Met.NEVER}
