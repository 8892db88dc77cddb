"""`gpusched demo`: the whole story in a minute, on simulated devices."""

from __future__ import annotations

import sys

import click

from gpusched.cli.settings import settings


@click.command()
@click.option("--real", is_flag=True, help="Use this machine's own GPUs instead of simulated ones.")
@click.option("--keep", is_flag=True, help="Leave the demo's directory behind to look at.")
@click.option("--fast", is_flag=True, help="Shorter, for a quick look.")
@click.option("--devices", default="sim:2x24G", show_default=True, metavar="SPEC", help="The devices to simulate.")
def demo(real: bool, keep: bool, fast: bool, devices: str) -> None:
    """Show the whole story in a minute.

    A training job is preempted by a more important one, saves itself, resumes, and ends with the right result. The
    demo has a daemon of its own, touches no other one, and cleans up.
    """
    from gpusched.demo import run_demo

    color = settings.color(sys.stdout)
    code = run_demo(real=real, keep=keep, fast=fast, devices=devices, color=color)
    click.get_current_context().exit(code if isinstance(code, int) else 0)
