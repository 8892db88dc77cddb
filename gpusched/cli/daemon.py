"""`gpusched daemon run|start|stop|status`: the service itself."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from gpusched import paths
from gpusched.cli.connect import connect, socket_path
from gpusched.cli.output import Json, print_json
from gpusched.cli.settings import say, settings
from gpusched.cli.text import duration, moment
from gpusched.client import Client
from gpusched.model.errors import Refused, Unavailable, UsageError

_LEVELS = ("debug", "info", "warning", "error")


@click.group()
def daemon() -> None:
    """Run, start, stop and look at the daemon."""


def _daemon_options(command: Any) -> Any:
    """What `run` and `start` share."""
    for option in reversed(
        (
            click.option("--state-dir", type=click.Path(file_okay=False), metavar="DIR", help="Where its state is."),
            click.option("--devices", metavar="SPEC", help="Simulate devices, for example sim:4x24G."),
            click.option("--config", type=click.Path(), metavar="FILE", help="Configuration file (TOML)."),
            click.option("--log-level", type=click.Choice(_LEVELS), help="How much it tells."),
        )
    ):
        command = option(command)
    return command


def _check_devices(devices: str | None) -> None:
    if devices is not None and devices != "nvml" and not devices.startswith("sim:"):
        raise UsageError(
            f"--devices {devices!r} cannot be read",
            "write for example sim:4x24G (four simulated devices of 24 GiB), or nvml for this machine's own GPUs",
        )


@daemon.command()
@_daemon_options
@click.option("--faults", type=click.Path(), metavar="FILE", help="Faults to inject into simulated devices.")
def run(
    state_dir: str | None, devices: str | None, config: str | None, log_level: str | None, faults: str | None
) -> None:
    """Run the daemon in the foreground (as systemd does it). Ctrl-C ends it; jobs go on."""
    _check_devices(devices)
    state = paths.make_state_dir(os.path.abspath(state_dir) if state_dir else paths.state_dir())
    chosen = config or paths.config_path()
    from gpusched.daemon.app import serve

    serve(
        state_dir=Path(state),
        devices=devices,
        config=Path(chosen) if chosen else None,
        faults=Path(faults) if faults else None,
        log_level=log_level,
    )


@daemon.command()
@_daemon_options
def start(state_dir: str | None, devices: str | None, config: str | None, log_level: str | None) -> None:
    """Start a personal daemon in the background. Commands do this by themselves when they need one."""
    from gpusched.cli import autostart

    _check_devices(devices)
    if state_dir:
        os.environ["GPUSCHED_STATE_DIR"] = os.path.abspath(state_dir)
    if os.environ.get("GPUSCHED_SOCKET"):
        raise Refused(
            "GPUSCHED_SOCKET names another daemon, and one that is started here would not listen there",
            "unset GPUSCHED_SOCKET first",
        )
    if paths.socket_path() == paths.SYSTEM_SOCKET:
        raise Refused(
            f"this machine has a service of its own at {paths.SYSTEM_SOCKET}",
            "use it (nothing needs to be started), or run a personal daemon: GPUSCHED_STATE_DIR=DIRECTORY",
        )
    if autostart.answers(paths.socket_path()):
        raise Refused("a daemon runs here already", "see: gpusched daemon status")
    arguments = ["--log-level", log_level] if log_level else []
    arguments += ["--devices", devices] if devices else []
    arguments += ["--config", os.path.abspath(config)] if config else []
    autostart.start(arguments, quiet=True)
    with Client(paths.socket_path()) as client:
        _print_status(client.status())


@daemon.command()
@click.option("--ask-jobs", is_flag=True, help="Ask running jobs to save and go back to the queue.")
def stop(ask_jobs: bool) -> None:
    """Stop the daemon. Running jobs go on without it, and are found again by the next one."""
    with connect(start=False) as client:
        pid = int(client.status()["pid"])
        text = client.stop_daemon(ask_jobs)
    deadline = time.monotonic() + 30.0
    while _alive(pid):
        if time.monotonic() > deadline:
            raise Unavailable(f"{text} But process {pid} has not ended after 30 s", "look at its log: gpusched doctor")
        time.sleep(0.02)
    if settings.json:
        print_json({"text": text})
    else:
        print(text)


def _alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


@daemon.command()
def status() -> None:
    """Say whether a daemon answers, and how it is. Exit code 69 if none does. Starts none."""
    with connect(start=False) as client:
        _print_status(client.status())


def _print_status(answer: Json) -> None:
    if settings.json:
        print_json(answer)
        return
    devices, jobs = answer["devices"], answer["jobs"]
    up = duration(max(0.0, time.time() - answer["started_at"]))
    print(f"gpusched {answer['version']} answers at {socket_path()}")
    print(f"  process   {answer['pid']} of {answer['user']}, since {moment(answer['started_at'])} ({up})")
    print(f"  state     {answer['state_dir']}")
    simulated = " (simulated)" if answer.get("probe") == "simulated" else ""
    print(f"  devices   {devices['total']}{simulated}, {devices['free']} free")
    print(f"  jobs      {jobs['running']} running, {jobs['pending']} waiting")
    for trouble in (answer.get("degraded"), devices.get("error")):
        if trouble:
            say(f"gpusched: {trouble}")
