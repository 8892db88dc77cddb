"""What happens between fork and exec: the forked child turns itself into the job. Never returns.

Everything that touches the user's files happens here, so that one slow or hostile path hangs or fails this child
and not its supervisor. A step that fails is told to the supervisor over a close-on-exec pipe, as a sentence.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import suppress
from typing import Any, NoReturn

from gpusched.supervisor.tree import BEGINNING

# What a supervisor is deaf to. SIGPIPE and SIGXFSZ because an interpreter gets an error instead.
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


class CannotStart(Exception):
    """A step before exec failed."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


def become_job(order: dict[str, Any], report: int, held: int) -> NoReturn:
    """Turn this forked process into the job. `report` is the write end of the pipe; its EOF means exec'd.

    held: the attempt's control directory, by which this process is known until it has its mark.
    """
    said: dict[str, Any]
    try:
        _prepare(order, report, held)
        _exec(order["argv"], order["env"], order["cwd"])
    except CannotStart as trouble:
        said = {"errno": trouble.number, "text": trouble.text}
    except BaseException as trouble:
        number = trouble.errno if isinstance(trouble, OSError) else None
        said = {"errno": number, "text": f"The job could not be started: {trouble}."}
    with suppress(OSError):  # /dev/null if the output was not open yet
        os.write(2, f"gpusched: {said['text']}\n".encode("utf-8", "replace"))
    with suppress(OSError):
        os.write(3, json.dumps(said).encode())
    os._exit(127)


def _prepare(order: dict[str, Any], report: int, held: int) -> None:
    """Make fds exactly 0, 1, 2 (until exec also 3, the report, and 4, BEGINNING), a session of its own, and defaults
    everywhere."""
    if held != BEGINNING:  # first: it was opened first, so neither of them is where the other one goes
        os.dup2(held, BEGINNING, inheritable=False)
    if report != 3:
        os.dup2(report, 3, inheritable=False)
    os.closerange(BEGINNING + 1, 1 << 20)  # the lock among them: only the supervisor's own life may hold it
    os.setsid()
    os.umask(order["umask"])
    try:
        os.makedirs(order["job_dir"], mode=0o700, exist_ok=True)
    except OSError as trouble:
        raise CannotStart(
            trouble.errno or 0, f"The job directory {order['job_dir']} cannot be created: {_why(trouble)}."
        ) from None
    _streams(order)
    try:
        os.chdir(order["cwd"])
    except OSError as trouble:
        raise CannotStart(
            trouble.errno or 0,
            f"The working directory {order['cwd']} cannot be entered: {_why(trouble)}. "
            "Create it, or submit with --chdir and another one.",
        ) from None
    for number in IGNORED:  # all others are at their defaults since the spawner started
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # last: from here on signals hit the defaults, as in any program


def _streams(order: dict[str, Any]) -> None:
    """stdin from /dev/null; output and error appended to their files, after the banner."""
    null = os.open("/dev/null", os.O_RDONLY)
    output = _open_output("output", order["output"])
    error = output if order["error"] in (None, order["output"]) else _open_output("error", order["error"])
    if order["banner"]:
        with suppress(OSError):  # a full disk is the job's to find out, not a reason not to start
            os.write(output, order["banner"].rstrip("\n").encode("utf-8", "replace") + b"\n")
    for target, source in enumerate((null, output, error)):
        os.dup2(source, target)
    for fd in {null, output, error} - {0, 1, 2}:
        os.close(fd)


def _open_output(which: str, path: str) -> int:
    # NONBLOCK: a FIFO without a reader must be an error and not an endless wait; the job gets a blocking file.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as trouble:
        hint = {
            errno.ELOOP: "it is a symbolic link, which is not followed; name the file itself",
            errno.ENXIO: "it is a FIFO or socket that nobody reads",
            errno.ENOENT: "its directory does not exist; create the directory first",
        }.get(trouble.errno or 0, _why(trouble))
        text = f"The {which} file {path} cannot be opened for writing: {hint}."
        raise CannotStart(trouble.errno or 0, text) from None
    os.set_blocking(fd, True)
    return fd


def _why(trouble: OSError) -> str:
    return os.strerror(trouble.errno) if trouble.errno else str(trouble)


def _exec(argv: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    """Run the command as a shell would find it: PATH of the job's environment, #!-less scripts through /bin/sh."""
    name = argv[0]
    searched = env.get("PATH", os.defpath)
    places = [name] if "/" in name else [os.path.join(place or ".", name) for place in searched.split(":")]
    trouble = OSError(errno.ENOENT, "not found")
    for place in places:
        try:
            try:
                os.execve(place, argv, env)
            except OSError as failed:
                if failed.errno != errno.ENOEXEC:
                    raise
                os.execve("/bin/sh", ["/bin/sh", place, *argv[1:]], env)
        except OSError as failed:
            # The search goes on past what cannot be run, and reports the most telling failure.
            if failed.errno not in (errno.ENOENT, errno.ENOTDIR):
                trouble = failed
                if failed.errno != errno.EACCES:
                    break
            elif os.path.exists(place):  # the file is there, so it is its interpreter that is not
                trouble = OSError(errno.ENOENT, "interpreter")
                break
    raise CannotStart(trouble.errno or 0, _not_run(name, trouble, searched, cwd))


def _not_run(name: str, trouble: OSError, searched: str, cwd: str) -> str:
    if trouble.strerror == "interpreter":
        return f"The command {name} cannot be run: the interpreter named in its first line (or its loader) is missing."
    if trouble.errno == errno.ENOENT and "/" in name:
        return f"The command {name} was not found (looked from {cwd})."
    if trouble.errno == errno.ENOENT:
        return f"The command {name} was not found in the job's PATH ({searched[:500] or 'empty'})."
    if trouble.errno == errno.EACCES:
        return f"The command {name} cannot be run: {_why(trouble)}. Is it a file with the execute bit? (chmod +x)"
    if trouble.errno == errno.E2BIG:
        return f"The command {name} cannot be run: its arguments and environment together are too long."
    return f"The command {name} cannot be run: {_why(trouble)}."
