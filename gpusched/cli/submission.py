"""From options and a command to the body of a submit (docs/api.md), checked as far as that goes without the daemon."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from gpusched.cli.connect import resolve
from gpusched.cli.script import Script, source_of
from gpusched.cli.settings import say
from gpusched.client import Client
from gpusched.model.begin import parse_begin
from gpusched.model.dependency import parse_dependency
from gpusched.model.environment import check_exec_limits, strip_scheduler_variables
from gpusched.model.errors import UsageError

# What a job needs of its surroundings even if nothing is exported: to find programs and its home.
_BASIC = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")
_PLAIN = (
    "name", "gpu_mem", "shared", "qos", "partition", "account", "cron", "array", "output", "error", "requeue",
    "nice", "max_requeues", "grace", "hold", "comment", "reservation",
)  # fmt: skip
_LAST = re.compile(r"@(?:~\d+)?(?:_\d+)?")


def build(client: Client, values: Mapping[str, Any], command: Sequence[str], script: Script | None) -> dict[str, Any]:
    """The body. `values` are the options that were given, by name. Raises UsageError, NotFound."""
    cwd = working_directory(values.get("chdir"))
    env = environment(values.get("export"), values.get("env") or ())
    check_exec_limits(command, env)
    body: dict[str, Any] = {name: values[name] for name in _PLAIN if name in values}
    if "gpu_mem" in body:
        body["gpu_mem_mib"] = body.pop("gpu_mem")
    body.update(_gpus(values))
    if values.get("time_limit"):
        body["time_limit"] = values["time_limit"]
    if values.get("expect"):
        body["expected"] = values["expect"]
    if "signal" in values:
        body["signal"], body["warn"] = values["signal"]
    if values.get("begin"):
        body["begin"] = begin_time(values["begin"])
    if depends := dependency(client, values.get("after") or (), values.get("dependency")):
        body["dependency"] = depends
    if values.get("keep_on_dep_fail"):
        body["cancel_on_bad_dependency"] = False
    if values.get("checkpoint_dir"):
        body["checkpoint_dir"] = values["checkpoint_dir"]  # a pattern: the daemon fills it in and puts it below cwd
    return {
        **body,
        "command": list(command),
        "cwd": cwd,
        "env": env,
        "umask": _umask(),
        "source": source_of(command, script, cwd),
    }


def _gpus(values: Mapping[str, Any]) -> dict[str, Any]:
    from gpusched.cli.options import gpu_glob

    found: dict[str, Any] = {}
    if "gpus" in values:
        count, kind = values["gpus"]
        found["gpus"] = count.least
        if count.most is not None:
            found["gpus_max"], found["gpu_counts"] = count.most, list(count.only)
        if kind:
            found["gpu_type"] = kind
    if "gpu_type" in values:
        if "gpu_type" in found:
            raise UsageError("the type of GPU is given twice", "give it either as --gpus TYPE:N or as --gpu-type")
        found["gpu_type"] = gpu_glob(values["gpu_type"])
    if values.get("shared") and "gpu_mem" not in values:
        raise UsageError("--shared needs --gpu-mem: how much of the GPU is the job's?", "for example --gpu-mem 10G")
    return found


def working_directory(asked: str | None) -> str:
    """The absolute directory to run in. Raises UsageError if there is none."""
    try:
        path = os.path.abspath(asked) if asked else os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current directory has been removed", "cd somewhere else first, or use --chdir") from None
    if not os.path.isdir(path):
        raise UsageError(f"there is no directory {path}", "check --chdir")
    return path


def environment(export: str | None, extra: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """The job's variables: those of here (ALL), only the basic ones (NONE), or named ones; then --env."""
    here = _utf8(strip_scheduler_variables(os.environ))
    words = [word.strip() for word in (export or "ALL").split(",") if word.strip()]
    if any(word.upper() == "ALL" for word in words):
        env = dict(here)
    else:
        env = {name: here[name] for name in _BASIC if name in here}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            env[name] = value
        elif name.upper() not in ("ALL", "NONE") and name in here:
            env[name] = here[name]
    for name, given in extra:
        if given is None and name not in os.environ:
            raise UsageError(f"--env {name}: there is no such variable here", f"write: --env {name}=VALUE")
        env[name] = os.environ[name] if given is None else given
    return env


def _utf8(env: Mapping[str, str]) -> dict[str, str]:
    """Without variables that are not text; which is said, because somebody may miss them."""
    bad = [name for name, value in env.items() if any("\ud800" <= char <= "\udfff" for char in name + value)]
    if bad:
        say(f"gpusched: left out of the job's environment, not UTF-8: {', '.join(map(ascii, bad))}")
    return {name: value for name, value in env.items() if name not in bad}


class _Local(tzinfo):
    """The machine's time zone, with its changes of the clock (which datetime.astimezone() alone does not carry)."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        if moment is None:
            return timedelta(seconds=time.localtime().tm_gmtoff)
        stamp = time.mktime((*moment.timetuple()[:8], -1))
        return timedelta(seconds=time.localtime(stamp).tm_gmtoff)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def fromutc(self, moment: datetime) -> datetime:
        stamp = moment.replace(tzinfo=UTC).timestamp()
        return moment + timedelta(seconds=time.localtime(stamp).tm_gmtoff)

    def tzname(self, moment: datetime | None) -> str:
        return "local"


def local_now() -> datetime:
    """The present moment, aware of the machine's time zone."""
    return datetime.now(_Local())


def begin_time(text: str) -> float:
    """Seconds since the epoch. Raises UsageError."""
    return parse_begin(text, local_now()).timestamp()


def dependency(client: Client, after: Sequence[str], text: str | None) -> str | None:
    """--after and --dependency in one expression, with `@` replaced. Raises UsageError, NotFound."""
    parts = []
    if after:
        parts.append("afterok:" + ":".join(resolve(client, after)))
    if text:
        if after and "?" in text:
            raise UsageError("--after means all of the jobs, '?' in --dependency means any", "use --dependency alone")
        parts.append(_LAST.sub(lambda found: resolve(client, [found[0]])[0], text))
    joined = ",".join(parts)
    if joined:
        parse_dependency(joined)
    return joined or None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
