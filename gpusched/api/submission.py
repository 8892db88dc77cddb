"""The bodies of submit and update: every field checked before the engine sees it. Unknown fields are refused."""

from __future__ import annotations

import os
import signal as signals
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gpusched.model.dependency import parse_dependency
from gpusched.model.digest import digest_of
from gpusched.model.environment import check_exec_limits, strip_scheduler_variables
from gpusched.model.errors import UsageError
from gpusched.model.gpu_count import MOST, elastic_count
from gpusched.model.job import JobSpec, Request, Source
from gpusched.model.patterns import expand
from gpusched.model.policy import MOST_NICE
from gpusched.model.rules import Rules

CATCHABLE = {int(s) for s in signals.valid_signals()} - {signals.SIGKILL, signals.SIGSTOP}
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Wall = Annotated[float, Field(ge=0, le=32_503_680_000, allow_inf_nan=False)]  # until the year 3000


def _whole(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character, which no path and no program can take")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains characters that cannot be printed")
    return text


Nice = Annotated[int, Field(ge=-MOST_NICE, le=MOST_NICE)]
Text = Annotated[str, Field(max_length=4096), AfterValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Comment = Annotated[str, Field(max_length=1024), AfterValidator(_whole)]
Dependency = Annotated[str, Field(max_length=65536)]
Counts = Annotated[list[Annotated[int, Field(ge=0, le=MOST)]], Field(max_length=MOST)]


Body = TypeVar("Body", bound=BaseModel)


class SourceBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    script: Text | None = None
    script_sha256: Text | None = None
    git_commit: Text | None = None
    git_dirty: bool = False


class Submission(BaseModel):
    """See docs/api.md. Times in seconds, memory in MiB."""

    model_config = ConfigDict(extra="forbid", strict=True)

    command: list[str]
    cwd: Text
    env: dict[str, str] = {}
    name: Name | None = None
    gpus: Annotated[int, Field(ge=0, le=MOST)] = 1
    gpus_max: Annotated[int, Field(ge=1, le=MOST)] | None = None
    gpu_counts: Counts = []
    gpu_mem_mib: Annotated[int, Field(ge=1, le=2**40)] | None = None
    shared: bool = False
    gpu_type: Name | None = None
    partition: Name | None = None
    reservation: Name | None = None
    qos: Name | None = None
    account: Annotated[str, Field(max_length=128), AfterValidator(_printable)] = ""
    time_limit: Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)] | None = None
    expected: Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)] | None = None
    nice: Nice = 0
    warn: Seconds = 0.0
    begin: Wall | None = None
    cron: Name | None = None
    dependency: Dependency | None = None
    cancel_on_bad_dependency: bool = True
    array: Annotated[str, Field(max_length=65536)] | None = None
    output: Text | None = None
    error: Text | None = None
    requeue: bool = True
    max_requeues: Annotated[int, Field(ge=0, le=10**6)] | None = None
    grace: Seconds | None = None
    signal: int = int(signals.SIGTERM)
    checkpoint_dir: Text | None = None
    umask: Annotated[int, Field(ge=0, le=0o777)] = 0o022
    hold: bool = False
    comment: Comment = ""
    source: SourceBody = SourceBody()


class Update(BaseModel):
    """What can be changed of a job. 0 or "" takes a time limit, begin time, memory, type or dependency away."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name = "-"
    qos: Name = "-"
    comment: Comment = ""
    time_limit: Seconds = 0.0
    expected: Seconds = 0.0
    nice: Nice = 0
    begin: Wall = 0.0
    gpus: Annotated[int, Field(ge=0, le=MOST)] = 0
    gpus_max: Annotated[int, Field(ge=0, le=MOST)] = 0
    gpu_counts: Counts = []
    gpu_mem_mib: Annotated[int, Field(ge=0, le=2**40)] = 0
    gpu_type: Annotated[str, Field(max_length=128), AfterValidator(_printable)] = ""
    partition: Name = "-"
    reservation: Annotated[str, Field(max_length=128), AfterValidator(_printable)] = ""
    dependency: Dependency = ""
    requeue: bool = True


def read_submission(body: Any) -> Submission:
    """Raises UsageError that names the field and what is wrong with it."""
    return read(Submission, body, "gpusched submit --help")


def read_update(body: Any) -> dict[str, Any]:
    """The fields that are to change, and nothing else. Raises UsageError."""
    changes = read(Update, body, "gpusched update --help").model_dump(exclude_unset=True)
    if "gpu_counts" in changes:
        changes["gpu_counts"] = tuple(changes["gpu_counts"])
    return changes


def read(shape: type[Body], body: Any, see: str) -> Body:
    """A body of this shape. Raises UsageError that names the field, with `see` as the command that helps."""
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        if first["type"] == "extra_forbidden":
            names = ", ".join(sorted(shape.model_fields))
            raise UsageError(f"unknown field {where!r}", f"known: {names}") from None
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {said}", f"see: {see}; for programs: docs/api.md") from None


def _refuse_one_directory_for_all(pattern: str) -> None:
    """Elements of an array that save into one directory would resume from each other's checkpoints, in silence."""
    names = [
        expand(pattern, job_id=n, array_id=1, array_index=n, name="x", user="x", restart=0) for n in (1, 2)
    ]
    if names[0] == names[1]:
        raise UsageError(
            f"all elements of the array would save into the same directory {pattern!r}",
            f"give each its own: --checkpoint-dir {pattern.rstrip('/')}/%A_%a",
        )


def to_spec(body: Submission, rules: Rules) -> tuple[JobSpec, dict[str, str]]:
    """The job's spec and its environment. Raises UsageError for what could never run."""
    environment = strip_scheduler_variables(body.env)
    check_exec_limits(body.command, environment)
    if not os.path.isabs(body.cwd):
        raise UsageError(f"the working directory {body.cwd!r} is not absolute", "send an absolute path")
    if body.signal not in CATCHABLE:
        raise UsageError(f"signal {body.signal} cannot be sent as a request", "for example TERM, USR1 or INT")
    name = body.name or os.path.basename(body.source.script or body.command[0])[:128] or "job"
    if any(not c.isprintable() for c in name):
        raise UsageError("the job's name contains characters that cannot be printed", "choose another: --name")
    output = body.output or ("gpusched-%A_%a.out" if body.array else "gpusched-%j.out")
    for pattern in (output, body.error, body.checkpoint_dir):
        if pattern is not None:
            expand(pattern, job_id=1, array_id=1, array_index=1, name=name, user="x", restart=0)
    if body.array and body.checkpoint_dir:
        _refuse_one_directory_for_all(body.checkpoint_dir)
    count = elastic_count(body.gpus, body.gpus_max, body.gpu_counts)
    request = Request(
        count.least, body.gpu_mem_mib, body.shared, body.gpu_type, body.partition or rules.default_partition,
        gpus_max=count.most, gpu_counts=count.only, reservation=body.reservation or "",
    )
    source = body.source
    spec = JobSpec(
        command=tuple(body.command),
        cwd=body.cwd,
        name=name,
        request=request,
        qos=body.qos or rules.default_qos,
        account=body.account,
        env_digest=digest_of(environment),
        time_limit=body.time_limit,
        expected=body.expected,
        nice=body.nice,
        warn=body.warn,
        begin=body.begin,
        cron=body.cron,
        dependency=parse_dependency(body.dependency) if body.dependency else None,
        cancel_on_bad_dependency=body.cancel_on_bad_dependency,
        output=output,
        error=body.error,
        requeue=body.requeue,
        max_requeues=body.max_requeues,
        grace=body.grace,
        signal=body.signal,
        checkpoint_dir=body.checkpoint_dir,
        umask=body.umask,
        comment=body.comment,
        source=Source(source.script, source.script_sha256, source.git_commit, source.git_dirty),
    )
    return spec, environment
