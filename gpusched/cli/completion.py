"""`gpusched completion bash|zsh|fish`: the script that makes the Tab key complete commands, options and job ids."""

from __future__ import annotations

import os
import sys

import click

from gpusched.cli.settings import say

_HOW = {
    "bash": 'put this line into ~/.bashrc: eval "$(gpusched completion bash)"',
    "zsh": 'put this line into ~/.zshrc: eval "$(gpusched completion zsh)"',
    "fish": "run: gpusched completion fish > ~/.config/fish/completions/gpusched.fish",
}


def _this_shell() -> str:
    name = os.path.basename(os.environ.get("SHELL", ""))
    return name if name in _HOW else "bash"


@click.command()
@click.argument("shell", type=click.Choice(sorted(_HOW)), required=False)
def completion(shell: str | None) -> None:
    """Print the completion script of a shell (default: yours)."""
    from click.shell_completion import get_completion_class

    from gpusched.cli.main import cli

    chosen = shell or _this_shell()
    found = get_completion_class(chosen)
    assert found is not None
    print(found(cli, {}, "gpusched", "_GPUSCHED_COMPLETE").source())
    if sys.stdout.isatty():
        say(_HOW[chosen])
