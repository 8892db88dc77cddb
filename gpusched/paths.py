"""Where gpusched keeps its things: one answer for the daemon, the command line and the tests.

Paths are text, and nothing is imported but os, because every command pays for what this module imports.
It decides and creates; it never reads what it finds there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from gpusched.model.errors import NotAllowed, Unavailable

SYSTEM_SOCKET = "/run/gpusched/gpusched.sock"  # of the service that an administrator installed
SYSTEM_CONFIG = "/etc/gpusched/config.toml"


def state_dir(env: Mapping[str, str] = os.environ) -> str:
    """The state directory: $GPUSCHED_STATE_DIR, or one per host below the user's state home.

    Per host, because home directories are often shared between machines, and devices are not.
    """
    if env.get("GPUSCHED_STATE_DIR"):
        return os.path.abspath(env["GPUSCHED_STATE_DIR"])
    home = env.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    host = os.uname().nodename.replace("/", "_") or "localhost"
    return os.path.join(os.path.abspath(home), "gpusched", host)


def socket_path(env: Mapping[str, str] = os.environ) -> str:
    """The daemon's socket: $GPUSCHED_SOCKET, else the system service's if there is one, else the personal one."""
    if env.get("GPUSCHED_SOCKET"):
        return os.path.abspath(env["GPUSCHED_SOCKET"])
    if not env.get("GPUSCHED_STATE_DIR") and os.path.exists(SYSTEM_SOCKET):
        return SYSTEM_SOCKET
    return os.path.join(state_dir(env), "gpusched.sock")


def config_path(env: Mapping[str, str] = os.environ) -> str | None:
    """The configuration file: $GPUSCHED_CONFIG, else the user's own, else the system's. None: there is none."""
    if env.get("GPUSCHED_CONFIG"):
        return os.path.abspath(env["GPUSCHED_CONFIG"])  # named on purpose: if it is missing, whoever reads it says so
    home = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    for path in (os.path.join(home, "gpusched", "config.toml"), SYSTEM_CONFIG):
        if os.path.exists(path):
            return path
    return None


def log_path(state: str) -> str:
    """Where a personal daemon that runs in the background writes what it has to say."""
    return os.path.join(state, "daemon.log")


def make_state_dir(path: str) -> str:
    """Create the state directory for this user alone (0700). Raises NotAllowed or Unavailable."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.stat(path)
    except OSError as error:
        raise Unavailable(
            f"the state directory {path} cannot be created: {error.strerror}",
            "set GPUSCHED_STATE_DIR to a directory that you can write to",
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise Unavailable(
            f"the state directory {path} is no directory", "set GPUSCHED_STATE_DIR to a directory, or to a new name"
        )
    if found.st_uid != os.geteuid():
        raise NotAllowed(
            f"the state directory {path} belongs to uid {found.st_uid}, not to you",
            "set GPUSCHED_STATE_DIR to a directory of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(path, 0o700)
    return path
