"""What people ask of jobs that exist: one function per verb, each for one job, with a sentence as the answer.

Who may do what is decided in `authorise`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpusched.engine.attempts import MOST_PATIENCE, ask_to_stop, grace, kill_now
from gpusched.engine.dependencies import (
    Met,
    check_known,
    check_no_cycle,
    evaluate,
    follow,
    resolve,
    unfollow,
)
from gpusched.engine.submit import check_request
from gpusched.engine.turn import Turn
from gpusched.model.actions import Ask, Asked
from gpusched.model.changes import Answer
from gpusched.model.dependency import parse_dependency
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
from gpusched.model.job import Caller, Hold, HoldKind, Job, JobSpec
from gpusched.model.state import JobState, Stop, StopKind

JobRequest = (
    CancelRequested
    | HoldRequested
    | ReleaseRequested
    | RequeueRequested
    | PreemptRequested
    | CheckpointRequested
    | UpdateRequested
)
Verb = Callable[[Turn, Job, Caller], str]


def authorise(caller: Caller, job: Job) -> None:
    """Owner or administrator; anybody else is refused."""
    if not caller.admin and caller.uid != job.owner.uid:
        raise NotAllowed(f"job {job.key} belongs to {job.owner.user}", "ask its owner or an administrator")


def on_request(turn: Turn, event: JobRequest) -> tuple[Answer, ...]:
    """Carry out the request for every job that the keys name; each gets its own answer."""
    for job in event.recalled:
        if job.id not in turn.state.jobs:
            turn.add_job(job)
    answers: list[Answer] = []
    for key in dict.fromkeys(event.keys):
        jobs = resolve(turn.state, key)
        if not jobs:
            answers.append(Answer(key, error=NotFound(f"there is no job {key}", "see: gpusched queue --all")))
        several = len(jobs) > 1
        for job in jobs:
            if several and job.state.final and not isinstance(event, RequeueRequested):
                continue  # of an array, only the elements that are not over yet are meant
            answers.append(_one(turn, event, job))
        if several and not any(a.key.startswith(f"{key}_") for a in answers):
            answers.append(Answer(key, error=Refused(f"every element of array {key} has ended already")))
    return tuple(answers)


def _one(turn: Turn, event: JobRequest, job: Job) -> Answer:
    try:
        authorise(event.caller, job)
        if isinstance(event, UpdateRequested):
            return Answer(job.key, _update(turn, job, event))
        return Answer(job.key, _VERBS[type(event)](turn, job, event.caller))
    except GpuschedError as error:
        return Answer(job.key, error=error)


def _cancel(turn: Turn, job: Job, caller: Caller) -> str:
    if job.state.final:
        raise Refused(f"job {job.key} has ended already ({job.state})")
    if job.state is JobState.PENDING:
        because = f"cancelled by {caller.user}"
        job = turn.put_job(
            job, state=JobState.CANCELLED, ended_at=turn.now.wall, ended_because=because, earmark=(), hold=None
        )
        turn.tell(job, "cancelled", because, caller.user)
        return "cancelled"
    if job.stop is not None and job.stop.kind is StopKind.CANCEL:
        kill_now(turn, job, f"cancelled again by {caller.user}: killed at once")
        return "killed at once (it was being cancelled already)"
    patience = min(grace(turn, job), MOST_PATIENCE)
    ask_to_stop(turn, job, Stop(StopKind.CANCEL, turn.now.boot + patience, by=caller.user))
    return f"asked to stop; killed in {patience:.0f} s if it has not (cancel again to kill it at once)"


def _hold(turn: Turn, job: Job, caller: Caller) -> str:
    if job.state is not JobState.PENDING:
        raise Refused(
            f"job {job.key} is {job.state}, only waiting jobs can be held",
            f"to take a running one back first: gpusched requeue {job.key}" if job.state.live else "",
        )
    if job.hold is not None:
        return "held already"
    foreign = caller.admin and caller.uid != job.owner.uid
    kind = HoldKind.ADMIN if foreign else HoldKind.USER
    job = turn.put_job(job, hold=Hold(kind, f"held by {caller.user}"), earmark=())
    turn.tell(job, "held", f"held by {caller.user}", caller.user)
    return "held"


def _release(turn: Turn, job: Job, caller: Caller) -> str:
    if job.hold is None:
        raise Refused(f"job {job.key} is not held")
    if job.hold.kind is HoldKind.ADMIN and not caller.admin:
        raise NotAllowed(f"job {job.key} is held by an administrator ({job.hold.reason})", "ask them to release it")
    job = turn.put_job(job, hold=None, unasked_requeues=0, failed_starts=0)
    turn.tell(job, "released", f"released by {caller.user}", caller.user)
    return "released"


def _requeue(turn: Turn, job: Job, caller: Caller) -> str:
    if job.state is JobState.PENDING:
        raise Refused(f"job {job.key} is waiting already")
    if job.state.live:
        _ask_back(turn, job, caller, StopKind.REQUEUE)
        return "asked to save and leave; it then waits again"
    # a dependency that was good enough for the first start is not asked for again
    job = turn.put_job(
        job, state=JobState.PENDING, ended_at=None, ended_because="", hold=None, dependency_met=True,
        dependency_failed=False, restarts=job.restarts + 1, unasked_requeues=0, eligible_at=None,
    )
    turn.state.singletons[(job.owner.uid, job.spec.name)].add(job.id)
    turn.tell(job, "requeued", f"requeued by {caller.user}", caller.user)
    return "waits again" + (f", from its checkpoint {job.saved.checkpoint}" if job.saved else "")


def _preempt(turn: Turn, job: Job, caller: Caller) -> str:
    if not job.state.live:
        raise Refused(f"job {job.key} is {job.state}: it has no device to give back")
    _ask_back(turn, job, caller, StopKind.YIELD)
    return "asked to save and give its devices back; it keeps its place in the queue"


def _ask_back(turn: Turn, job: Job, caller: Caller, kind: StopKind) -> None:
    if job.state is JobState.STOPPING and job.stop is not None:
        raise Refused(f"job {job.key} is leaving already: {job.stop.phrase()}")
    ask_to_stop(turn, job, Stop(kind, turn.now.boot + grace(turn, job), by=caller.user))


def _checkpoint(turn: Turn, job: Job, caller: Caller) -> str:
    attempt = turn.state.view.live.get(job.id)
    if job.state is not JobState.RUNNING or attempt is None:
        raise Refused(f"job {job.key} is {job.state}: only a running job can save")
    if not attempt.watching:
        raise Refused(
            f"job {job.key} does not watch for requests, so it cannot be asked to save and go on",
            "use gpusched.checkpoint in its script (docs/checkpoint.md)",
        )
    turn.act(Ask(attempt.key, Asked.SAVE, f"asked by {caller.user}", None, job.spec.signal))
    turn.tell(job, "asked-to-save", f"asked by {caller.user} to save now", caller.user)
    return "asked to save; it goes on running"


_VERBS: dict[type, Verb] = {
    CancelRequested: _cancel,
    HoldRequested: _hold,
    ReleaseRequested: _release,
    RequeueRequested: _requeue,
    PreemptRequested: _preempt,
    CheckpointRequested: _checkpoint,
}
_WHILE_LIVE = ("name", "qos", "comment", "time_limit", "requeue")


def _update(turn: Turn, job: Job, event: UpdateRequested) -> str:
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
    spec = _changed_spec(turn, job, asked)
    if "dependency" in asked:
        unfollow(turn.state, job)
        turn.state.singletons[(job.owner.uid, spec.name)].add(job.id)
        job = replace(job, spec=spec)
        met = evaluate(turn.state, job)
        job = replace(job, dependency_met=met is Met.YES, dependency_failed=met is Met.NEVER)
    _rename(turn, job, spec)
    earmark = job.earmark if spec.request == job.spec.request and spec.qos == job.spec.qos else ()
    job = turn.put_job(job, spec=spec, earmark=earmark)
    follow(turn.state, job)
    said = ", ".join(f"{name} = {value}" for name, value in asked.items())
    turn.tell(job, "updated", f"{said} (by {event.caller.user})", event.caller.user)
    return f"changed: {said}"


_FIELDS = (
    "name", "qos", "comment", "time_limit", "begin", "gpus", "gpu_mem_mib", "gpu_type", "partition", "dependency",
    "requeue",
)


def _changed_spec(turn: Turn, job: Job, asked: dict[str, object]) -> JobSpec:
    spec, request = job.spec, job.spec.request
    for name, value in asked.items():
        match name:
            case "qos":
                turn.rules.level(str(value))
                spec = replace(spec, qos=str(value))
            case "time_limit" | "begin":
                spec = replace(spec, **{name: value or None})  # type: ignore[arg-type]
            case "gpus" | "gpu_mem_mib" | "gpu_type" | "partition":
                empty = name in ("gpu_mem_mib", "gpu_type") and not value
                request = replace(request, **{name: None if empty else value})  # type: ignore[arg-type]
            case "dependency":
                dependency = parse_dependency(str(value)) if value else None
                if dependency is not None:
                    check_known(turn.state, dependency, job.key)
                    check_no_cycle(turn.state, job, dependency)
                spec = replace(spec, dependency=dependency)
            case _:
                spec = replace(spec, **{name: value})  # type: ignore[arg-type]
    turn.rules.partition(request.partition)
    if request != job.spec.request:
        check_request(turn.view, request)
    return replace(spec, request=request)


def _rename(turn: Turn, job: Job, spec: JobSpec) -> None:
    if spec.name != job.spec.name:
        turn.state.singletons[(job.owner.uid, job.spec.name)].discard(job.id)
        turn.state.singletons[(job.owner.uid, spec.name)].add(job.id)
