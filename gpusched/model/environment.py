"""What may go into a job's environment and argument vector. Pure: the caller passes the variables in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpusched.model.errors import UsageError

_STRIPPED_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "GPUSCHED_", "LISTEN_", "WATCHDOG_")
_STRIPPED = frozenset({"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM"})

MAX_STRING = 128 * 1024 - 1  # what Linux lets one argument or variable have (MAX_ARG_STRLEN, less the final NUL)
MAX_TOTAL = 1024 * 1024  # bytes of everything together; exec itself takes more, but jobs have to stay readable
MAX_VARIABLES = 4096


def strip_scheduler_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without what belongs to the job, service or scheduler it was itself started by.

    Training frameworks switch into Slurm mode on seeing SLURM_*; a job submitted from within a job must not take
    itself for its parent; and a service's notify socket is nobody else's.
    """
    return {
        name: value for name, value in env.items() if name not in _STRIPPED and not name.startswith(_STRIPPED_PREFIXES)
    }


def _check_string(text: str, what: str) -> int:
    """Bytes of one string. Raises UsageError."""
    if "\0" in text:
        raise UsageError(f"{what} contains a NUL character", "no program can be started with it: remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8 text", "rename the file, or unset the variable") from None
    if size > MAX_STRING:
        raise UsageError(
            f"{what} is {size // 1024} KiB long, the system allows {(MAX_STRING + 1) // 1024} KiB",
            "put it into a file and pass the file's name",
        )
    return size


def check_exec_limits(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse what could never be started. Raises UsageError with what is wrong and how to get around it."""
    if not argv or not argv[0]:
        raise UsageError("the command is empty", "write for example: gpusched submit -- python train.py")
    if len(env) > MAX_VARIABLES:
        raise UsageError(
            f"the environment has {len(env)} variables, at most {MAX_VARIABLES} are allowed",
            "use --export NONE, or name the ones that the job needs: --export A,B",
        )
    total = sum(_check_string(word, f"argument {place} of the command") for place, word in enumerate(argv))
    for name, value in env.items():
        if not name or "=" in name:
            raise UsageError(f"{name!r} is no name for an environment variable", "write: --env NAME=VALUE")
        total += _check_string(f"{name}={value}", f"environment variable {name[:60]!r}")
    if total > MAX_TOTAL:
        raise UsageError(
            f"command and environment together are {total // 1024} KiB, at most {MAX_TOTAL // 1024} KiB are allowed",
            "pass large values through a file, or use --export NONE",
        )
