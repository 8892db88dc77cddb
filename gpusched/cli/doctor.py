"""`gpusched doctor`: is everything in place? Looks, tells what to do, and changes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from gpusched import __version__, paths
from gpusched.cli.connect import connect, current_user, socket_path
from gpusched.cli.output import print_json
from gpusched.cli.settings import paint, settings
from gpusched.cli.streams import shows
from gpusched.cli.text import escape
from gpusched.model.errors import GpuschedError, Unavailable

_LOW_SPACE = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `ok` None: worth knowing, nothing wrong."""

    name: str
    ok: bool | None
    text: str
    hint: str = ""


@click.command()
def doctor() -> None:
    """Check this installation, the machine and the daemon. Exit code 0 if nothing is wrong, else 1."""
    checks = [*_here(), *_daemon()]
    bad = sum(check.ok is False for check in checks)
    if settings.json:
        print_json({"ok": not bad, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print("\n".join(_lines(check)))
        things = f"{bad} thing{'s' if bad > 1 else ''} to look at ({'✗' if shows('✓✗') else 'x'})"
        print(things if bad else "everything is in place")
    click.get_current_context().exit(1 if bad else 0)


def _lines(check: Check) -> list[str]:
    good, bad = ("✓", "✗") if shows("✓✗") else ("+", "x")
    mark = {True: paint(good, "green"), False: paint(bad, "red"), None: paint("!", "yellow")}[check.ok]
    lines = [f"{mark} {check.name}: {escape(check.text)}"]
    return lines if check.ok or not check.hint else [*lines, f"    {escape(check.hint)}"]


def _here() -> Iterator[Check]:
    """What can be seen without the daemon."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 11), f"{version}, gpusched {__version__}", "the daemon needs 3.11")
    yield _nvml()
    yield _torch()
    yield from _state()


def _nvml() -> Check:
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return Check(
            "NVIDIA driver",
            None,
            "libnvidia-ml.so.1 is not installed here: no GPU can be seen",
            "if there are GPUs install the driver; else simulate some: gpusched daemon run --devices sim:4x24G",
        )
    return Check("NVIDIA driver", True, "libnvidia-ml.so.1 is there")


def _torch() -> Check:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        text = "not in this environment (jobs bring their own)"
        return Check("torch", None, text, "only the demo needs it: pip install 'gpusched[torch]'")
    return Check("torch", True, "is there, for the demo")


def _state() -> Iterator[Check]:
    """Directory, space and whether jobs outlive a logout; for a personal daemon only."""
    if socket_path() == paths.SYSTEM_SOCKET:
        return
    state = paths.state_dir()
    place = state
    while not os.path.exists(place):
        place = os.path.dirname(place)
    yield _state_directory(state, place)
    from shutil import disk_usage

    free = disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free there"
    yield Check("disk space", free > _LOW_SPACE, text, "make room, or move the state: GPUSCHED_STATE_DIR=DIRECTORY")
    if os.path.isdir("/run/systemd/system"):
        user = current_user()
        stays = os.path.exists(f"/var/lib/systemd/linger/{user}")
        text = "your processes stay after you log out" if stays else "the system may end your jobs when you log out"
        yield Check("logout", True if stays else None, text, f"allow them to stay: loginctl enable-linger {user}")


def _state_directory(state: str, place: str) -> Check:
    """`place` is the state directory, or, while that is not there, the directory in which it would be made."""
    name, hint = "state directory", "set GPUSCHED_STATE_DIR to a directory of your own"
    if not os.path.isdir(place):
        return Check(name, False, f"{place} is no directory", hint)
    if place == state and (owner := os.stat(place).st_uid) != os.geteuid():
        return Check(name, False, f"{state} belongs to uid {owner}, not to you", hint)
    if not os.access(place, os.W_OK):
        return Check(name, False, f"{place} cannot be written to", hint)
    return Check(name, True, state if place == state else f"{state} (not created yet)")


def _daemon() -> Iterator[Check]:
    """Whether a daemon answers, and what it has to say itself."""
    try:
        with connect(start=False) as client:
            status: dict[str, Any] = client.status()
    except Unavailable as error:
        personal = socket_path() != paths.SYSTEM_SOCKET and not os.path.exists(socket_path())
        hint = "the first command that needs one starts it" if personal else error.hint
        yield Check("daemon", None if personal else False, error.message, hint)
        yield from _last_words()
        return
    except GpuschedError as error:
        yield Check("daemon", False, error.message, error.hint)
        return
    yield Check("daemon", True, f"gpusched {status['version']} answers at {socket_path()} (process {status['pid']})")
    if status.get("degraded"):
        yield Check("database", False, str(status["degraded"]), "see the daemon's log")
    for check in status.get("checks") or ():
        yield Check(str(check["name"]), check["ok"], str(check["text"]), str(check.get("hint") or ""))


def _last_words() -> Iterator[Check]:
    """What a daemon that does not answer has written last: there it says why it could not start."""
    log = paths.log_path(paths.state_dir())
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()[-3:]
    except OSError:
        return
    if lines:
        refused = any(line.startswith("gpusched: ") for line in lines)  # how an error ends it; all else has a time
        text = " | ".join(map(str.strip, lines))
        yield Check("its log ends with", False if refused else None, text, f"all of it: {log}")
