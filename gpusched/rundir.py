"""File names, variable names and atomic writes shared by daemon, supervisor and job. Stdlib only, Python 3.9+.

Two directories per attempt:

control directory  belongs to the daemon's uid; no user can write there
    order.json      daemon → supervisor: what to run (written before the start; 0600, it holds the environment):
                    {"attempt": "42-1", "argv", "env", "cwd", "output", "error", "job_dir", "umask", "banner",
                    "mark": value of ENV_MARK, "doorbell": path of the daemon's datagram socket}
    attempt.json    the claim, created once (link(2), which fails if it exists): the supervisor's
                    {"supervisor": pid, "boot_id", "claimed_at", "mark"} or the daemon's
                    {"revoked": true, "boot_id", "claimed_at"}
    lock            flock held by the supervisor while it lives
    ask.json        daemon → supervisor: {"seq", "what": "save"|"stop"|"kill", "cause", "deadline", "signal"};
                    seq grows; `deadline` is on the boot clock (CLOCK_BOOTTIME) or null
    signalled       supervisor: {"seq", "what", "signal", "at"}: asks up to this seq have been carried out;
                    `signal` is the number sent to the main process, null if none was
    status.json     supervisor → daemon: {"pid", "watching", "saved", "progress"}; pid null: not exec'd yet
    exit.json       supervisor → daemon: how it ended: {"kind", "code", "signal", "errno", "text", "saved", "killed",
                    "max_rss_mib", "cpu_s", "ended_wall", "ended_boot"}
    supervisor.log  only if the supervisor itself failed: its traceback
job directory      belongs to the user; the daemon believes of it only what concerns that job
    request         supervisor → job: {"ask": "save"|"stop", "seq", "cause", "deadline" on the boot clock or null,
                    "seconds_left": the same in seconds from the moment of writing, and for rehearsals and tests
                    "safe_point": not to be served before this one, counted in the process from 1}
    watching        job → supervisor: {"pid"}: I poll `request`
    saved           job → supervisor: {"attempt", "checkpoint", "step", "at"}: published and durable
    progress.jsonl  job → supervisor: append-only JSON lines {"epoch", "step", "total", "metrics", "time"}

The doorbell is a Unix datagram socket of the daemon. A supervisor that changed status.json or exit.json sends the
attempt's key (`42-1`, ASCII) there; the daemon believes nothing of the datagram and reads the files again.
"""

import json
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

EXIT_SAVED = 85  # "saved, run me again", as in HTCondor's self-checkpointing

# control directory
ORDER, CLAIM, LOCK, ASK, SIGNALLED, STATUS, EXIT = (
    "order.json",
    "attempt.json",
    "lock",
    "ask.json",
    "signalled",
    "status.json",
    "exit.json",
)
SUPERVISOR_LOG = "supervisor.log"
# job directory
REQUEST, WATCHING, SAVED, PROGRESS = "request", "watching", "saved", "progress.jsonl"

# the job's environment
ENV_JOB_ID = "GPUSCHED_JOB_ID"
ENV_ATTEMPT = "GPUSCHED_ATTEMPT"
ENV_JOB_DIR = "GPUSCHED_JOB_DIR"
ENV_CHECKPOINT_DIR = "GPUSCHED_CHECKPOINT_DIR"
ENV_GRACE = "GPUSCHED_GRACE_SECONDS"  # how long a job that is asked to leave may take
ENV_END_TIME = "GPUSCHED_END_TIME"  # seconds since 1970 at which the time limit passes; absent: there is none
ENV_TRACE = "GPUSCHED_TRACE"  # a file: gpusched.checkpoint writes there what everything was at each safe point
ENV_AGREE = "GPUSCHED_AGREE"  # "always": several ranks agree at every safe point, not about ten times a second
ENV_MARK = "GPUSCHED_ATTEMPT_MARK"  # unique per attempt: finds the remains of a tree whose supervisor was killed


def write_atomic(path: str, data: bytes, durable: bool = True, mode: int = 0o644) -> None:
    """Write a whole file or nothing: temporary name, fsync (if durable), rename, fsync of the directory."""
    directory = os.path.dirname(path) or "."
    temporary = "%s.tmp-%d" % (path, os.getpid())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    os.close(fd)
    os.replace(temporary, path)
    if durable:
        sync_directory(directory)


def sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: str, value: Dict[str, Any], durable: bool = True, mode: int = 0o644) -> None:
    write_atomic(path, json.dumps(value, separators=(",", ":")).encode(), durable=durable, mode=mode)


def read_json(path: str, limit: int = 1 << 20) -> Optional[Dict[str, Any]]:
    """The JSON object in a file; None if it is absent, torn, too large or not an object."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        value = json.loads(data) if len(data) <= limit else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def claim(path: str, value: Dict[str, Any]) -> bool:
    """Create a file with this content, once in the world. False if it already exists."""
    temporary = "%s.claim-%d" % (path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def boot_id() -> str:
    """Identity of this boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def tail_lines(path: str, limit: int = 65536) -> List[bytes]:
    """The last complete lines of a file, at most `limit` bytes of it."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return []
    lines = data.split(b"\n")[:-1]  # what follows the last newline is not complete
    return lines[1:] if size > limit else lines


@contextmanager
def unix_address(path: str) -> Iterator[str]:
    """An address to bind or connect to for a Unix socket at `path`, however long the path is.

    The kernel takes 107 bytes. A longer path is reached through a descriptor of its directory, which is open
    only inside the `with` block. Raises OSError if the directory does not exist.
    """
    if len(os.fsencode(path)) <= 107:
        yield path
        return
    fd = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield "/proc/self/fd/%d/%s" % (fd, os.path.basename(path))
    finally:
        os.close(fd)
