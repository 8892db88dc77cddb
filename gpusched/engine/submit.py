"""Submits: refused with what would fit, or taken in as one job, an array, or a --cron template."""

from __future__ import annotations

from gpusched.engine.dependencies import Met, by_element, check_known, evaluate, look_again
from gpusched.engine.folding import rows_of
from gpusched.engine.following import follow
from gpusched.engine.likes import check_likes
from gpusched.engine.limits import check_new, usual_time
from gpusched.engine.reservations import check_reservation
from gpusched.engine.turn import State, Turn
from gpusched.model.array import ArraySpec, parse_array
from gpusched.model.changes import Submitted
from gpusched.model.clock import Instant
from gpusched.model.errors import GpuschedError, NotAllowed, UsageError
from gpusched.model.events import CronFired, JobSubmitted
from gpusched.model.evolve import evolve
from gpusched.model.job import ArrayElement, Caller, Hold, HoldKind, Job, Owner, Request
from gpusched.model.policy import MOST_NICE
from gpusched.model.rules import Partition
from gpusched.model.state import JobState
from gpusched.model.units import format_duration, format_size
from gpusched.policy.together import ever_together, group_sizes, instead
from gpusched.policy.view import View


def check(state: State, event: JobSubmitted, now: Instant) -> tuple[Job, ArraySpec | None]:
    """The job that it becomes, with its defaults filled in, and its array, if it is one. Raises UsageError, NotAllowed
    and Refused; changes nothing."""
    spec, rules, caller = event.spec, state.rules, event.caller
    if not spec.command or not spec.command[0]:
        raise UsageError("there is no command to run", "write: gpusched submit [options] -- COMMAND [ARGUMENTS]")
    rules.level(spec.qos)
    partition = rules.partition(spec.request.partition)
    limit = partition.time_limit(spec.time_limit)
    check_time(partition, limit)
    owner, hold = Owner(caller.uid, caller.gid, caller.user), _hold(event)
    job = Job(state.next_job_id, owner, spec, JobState.PENDING, now.wall, hold=hold)
    check_reservation(state.view, job)
    check_request(state.view, spec.request)
    if limit is None and state.view.in_use.active:
        limit = usual_time(rules, job)
    array = _array(event, state)
    check_nice(spec.nice, caller)
    if spec.dependency is not None:
        check_known(state, spec.dependency)
        check_likes(state, spec.dependency, array.spans if array is not None else ())
        spec = evolve(spec, dependency=by_element(state, spec.dependency))
    if event.array is not None and spec.cron is not None:
        raise UsageError("--array and --cron do not go together", "submit an array from a --cron job's script")
    if limit != spec.time_limit:
        spec = evolve(spec, time_limit=limit)
    if spec is not event.spec:
        job = evolve(job, spec=spec)
    check_new(state.view, job, array.count if array is not None else 1)
    return job, array


def check_time(partition: Partition, limit: float | None) -> None:
    """Refuse a time limit (seconds) that the partition does not allow. Raises UsageError."""
    if limit is not None and limit < 0:
        raise UsageError("a time limit cannot be negative", "write for example --time 2:00:00, or 0 for no limit")
    if partition.max_time is not None and limit is not None and limit > partition.max_time:
        raise UsageError(
            f"time limit {format_duration(limit)} is longer than partition {partition.name!r} allows",
            f"give at most --time {format_duration(partition.max_time)}",
        )


def check_nice(nice: int, caller: Caller) -> None:
    """Refuse a --nice out of range, or one that puts a job before those of others. Raises UsageError, NotAllowed."""
    if not -MOST_NICE <= nice <= MOST_NICE:
        raise UsageError(f"--nice {nice} is out of range", f"from -{MOST_NICE} to {MOST_NICE}; more goes later")
    if nice < 0 and not caller.admin:
        raise NotAllowed(
            f"--nice {nice} would put the job before those of others: only administrators may go below 0",
            "give 0 or more, or ask an administrator",
        )


def check_request(view: View, request: Request) -> None:
    """Refuse what this machine can never give, saying what it could. Raises UsageError."""
    if request.gpus < 0:
        raise UsageError(f"--gpus {request.gpus} makes no sense", "ask for 0 (CPU only) or more")
    if request.gpus == 0:
        if request.shared or request.gpu_mem_mib or request.gpu_type:
            raise UsageError("--gpus 0 asks for no device, so --gpu-mem, --shared and --gpu-type mean nothing",
                             "leave them out, or ask for at least one device")
        return
    if request.shared and request.gpu_mem_mib is None:
        raise UsageError("--shared needs --gpu-mem: how much of the device is yours?", "for example --gpu-mem 10G")
    if request.shared and request.elastic:
        raise UsageError("a share of a GPU (--shared) cannot grow: it goes with one number of GPUs only",
                         f"write --gpus {request.gpus}, or leave --shared away")
    if request.gpu_mem_mib is not None and request.gpu_mem_mib <= 0:
        raise UsageError("--gpu-mem must be more than nothing", "for example --gpu-mem 10G")
    if not view.slots:
        raise UsageError(
            f"this machine has no GPU that gpusched knows of, and the job asks for {request.gpus}",
            "run it without one (--gpus 0), or see: gpusched doctor",
        )
    there = len(view.suitable(request))
    if there >= request.gpus and not ever_together(view, request):
        raise UsageError(
            f"no way to give {request.gpus} devices close together here: gangs are packed (policy.placement), and the "
            f"groups have {group_sizes(view, request)} devices",
            f"ask for {' or '.join(map(str, instead(view, request)))} (an administrator can change policy.placement)",
        )
    if there >= request.most:
        return
    hint = f"there are: {_what_there_is(view, request)}"
    if there >= request.gpus:
        hint += f"; ask for at most {there}"
    raise UsageError(f"no way to give {_asked(request)} here", hint)


def _asked(request: Request) -> str:
    text = f"{request.most} device{'s' if request.most > 1 else ''}"
    if request.gpu_type:
        text += f" of type {request.gpu_type!r}"
    if request.gpu_mem_mib:
        text += f" with {format_size(request.gpu_mem_mib)}"
    return text


def _what_there_is(view: View, request: Request) -> str:
    partition = view.rules.partitions[request.partition]
    kinds: dict[tuple[str, int], int] = {}
    for slot in view.slots.values():
        device = slot.device
        if partition.holds(device.index, device.uuid, device.name):
            kinds[(device.name, device.total_mib)] = kinds.get((device.name, device.total_mib), 0) + 1
    listed = ", ".join(f"{n} × {name} with {format_size(mib)}" for (name, mib), n in sorted(kinds.items()))
    where = f" in partition {request.partition!r}" if len(view.rules.partitions) > 1 else ""
    return (listed or "no devices") + where


def _array(event: JobSubmitted, state: State) -> ArraySpec | None:
    if event.array is None:
        return None
    array = parse_array(event.array)
    if array.count > state.rules.max_array:
        raise UsageError(f"the array has {array.count} elements, the most is {state.rules.max_array}", "split it")
    return array


def on_submitted(turn: Turn, event: JobSubmitted) -> Submitted:
    job, array = check(turn.state, event, turn.now)
    turn.put_environment(job.spec.env_digest, event.environment)
    count = array.count if array is not None else 1
    turn.take_ids(count)
    if job.spec.cron is not None:
        job = evolve(job, spec=evolve(job.spec, begin=event.next_run))
    for row in (job,) if array is None else array_rows(job, array):
        _take_in(turn, row)
    return Submitted(str(job.id), range(job.id, job.id + count))


def array_rows(job: Job, array: ArraySpec) -> list[Job]:
    """The rows with which an array begins: one, unless its elements are a long list of single numbers."""
    element = ArrayElement(job.id, array.first, array.count, array.first, array.last, array.step, array.limit)
    return list(rows_of(evolve(job, array=element), array.spans))


def _hold(event: JobSubmitted) -> Hold | None:
    return Hold(HoldKind.USER, "submitted with --hold") if event.hold else None


def _take_in(turn: Turn, job: Job) -> Job:
    met = evaluate(turn.state, job)
    job = turn.put_job(job if met is Met.YES else evolve(job, dependency_met=False))
    turn.tell(job, "submitted", f"submitted to QoS {job.spec.qos}", job.owner.user)
    if met is not Met.YES:
        follow(turn.state, job)
        look_again(turn, job)  # what can never be met nobody will have looked at later; elements may differ
    return job


def on_cron(turn: Turn, event: CronFired) -> None:
    """Submit a copy of a --cron template, unless its last copy is still unfinished, and arm the next."""
    template = turn.state.jobs.get(event.job_id)
    if template is None or template.spec.cron is None or template.state is not JobState.PENDING:
        return
    if template.spec.begin is None or event.due < template.spec.begin:
        return  # fired already
    template = turn.put_job(template, spec=evolve(template.spec, begin=event.next_run))
    if template.hold is not None:
        turn.tell(template, "skipped", "the run that was due is left out: the job is held")
        return
    unfinished = [j for j in turn.state.jobs.values() if j.cron_parent == template.id and not j.state.final]
    if unfinished:
        turn.tell(template, "skipped", f"the run that was due is left out: job {unfinished[0].key} is unfinished")
        return
    spec = evolve(template.spec, cron=None, begin=None)
    job = Job(0, template.owner, spec, JobState.PENDING, turn.now.wall, cron_parent=template.id)
    try:
        check_new(turn.view, job)
    except GpuschedError as error:
        turn.tell(template, "skipped", f"the run that was due is left out: {error.message}")
        return
    job = _take_in(turn, evolve(job, id=turn.take_ids(1)))
    turn.tell(template, "fired", f"submitted job {job.key}")
