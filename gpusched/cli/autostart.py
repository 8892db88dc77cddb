"""Starting a personal daemon in the background, as tmux and task-spooler do, and waiting until it answers.

The daemon itself makes sure that there is only one per state directory (a lock); two commands that start one at the
same moment both end up with the winner.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from gpusched import paths
from gpusched.cli.settings import say, settings
from gpusched.client import Client
from gpusched.model.environment import strip_scheduler_variables
from gpusched.model.errors import GpuschedError, Unavailable

DEADLINE = 15.0  # seconds until a daemon that does not answer is given up
_KEPT = ("GPUSCHED_STATE_DIR", "GPUSCHED_CONFIG")


def allowed() -> bool:
    """Whether a command may start a daemon here: not the system's, not if that is switched off.

    --socket and GPUSCHED_SOCKET name one certain daemon, which nobody but its owner starts.
    """
    if settings.socket or os.environ.get("GPUSCHED_SOCKET") or paths.socket_path() == paths.SYSTEM_SOCKET:
        return False
    switch = os.environ.get("GPUSCHED_AUTOSTART")
    if switch is not None:
        return switch.lower() not in ("0", "no", "false", "off")
    return _config_allows()


def _config_allows() -> bool:
    """`autostart = false` in the section [client] of the configuration switches it off."""
    path = paths.config_path()
    if path is None:
        return True
    import tomllib

    try:
        with open(path, "rb") as file:
            section = tomllib.load(file).get("client", {})
    except (OSError, tomllib.TOMLDecodeError):
        return True  # the daemon reads the same file and says what is wrong with it
    return not isinstance(section, dict) or section.get("autostart", True) is not False


def daemon_command(arguments: Sequence[str] = ()) -> list[str]:
    """What is executed. -P: the current directory is no place to import a daemon from."""
    return [sys.executable, "-P", "-m", "gpusched.daemon", *arguments]


def start(arguments: Sequence[str] = (), quiet: bool = False) -> None:
    """Start a daemon and return when it answers. Raises Unavailable with the last lines of its log."""
    socket_path = paths.socket_path()
    state = paths.make_state_dir(paths.state_dir())
    log = paths.log_path(state)
    if not quiet:
        say(f"no daemon here; starting a personal one (socket {socket_path})")
    with open(log, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as output:
        begin = output.tell()
        child = subprocess.Popen(
            daemon_command(["--state-dir", state, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    _await(child, socket_path, log, begin)


def _environment() -> dict[str, str]:
    """The daemon's own: nothing of a job in which this command may run."""
    kept = {name: os.path.abspath(os.environ[name]) for name in _KEPT if os.environ.get(name)}
    return {**strip_scheduler_variables(os.environ), **kept}


def answers(socket_path: str) -> bool:
    """Whether a daemon answers there now (of whatever version: that is for the command itself to judge)."""
    with Client(socket_path, timeout=DEADLINE) as client:
        try:
            client.status()
        except Unavailable:
            return False
        except GpuschedError:
            return True
    return True


def _await(child: subprocess.Popen[bytes], socket_path: str, log: str, begin: int) -> None:
    """Wait for an answer, and show after a second that something is going on."""
    started = time.monotonic()
    told, ended = False, 0.0
    while True:
        if answers(socket_path):
            child.returncode = child.poll() or 0  # it lives on, and is no longer our business
            return
        now = time.monotonic()
        if child.poll() is not None:
            # Perhaps another command's daemon has won the lock a moment ago and is about to answer.
            ended = ended or now
            if now - ended > 2.0:
                break
        if now - started > DEADLINE:
            break
        if now - started > 1.0 and not told:
            told = True
            say("waiting until it answers …")
        time.sleep(0.02)
    code = child.poll()
    child.returncode = code or 0
    state = f"ended with code {code}" if code is not None else f"does not answer after {DEADLINE:.0f} s"
    said = _last_lines(log, begin)
    hint = f"its log is {log}; to see it in the foreground: gpusched daemon run"
    if not said:
        said, hint = " and left no word, as happens on a full disk", "see what is wrong: gpusched doctor"
    raise Unavailable(f"the daemon {state}{said}", hint)


def _last_lines(log: str, begin: int, count: int = 8) -> str:
    """What the daemon has said since it was started, indented."""
    try:
        with open(log, "rb") as file:
            file.seek(begin)
            lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return ""
    return "".join(f"\n  | {line}" for line in lines)
