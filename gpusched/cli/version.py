"""`gpusched version`: of this command, and of the daemon if one answers."""

from __future__ import annotations

import click

from gpusched import __version__
from gpusched.cli.connect import connect
from gpusched.cli.output import print_json
from gpusched.cli.settings import settings
from gpusched.client import API
from gpusched.model.errors import GpuschedError


@click.command()
def version() -> None:
    """Print the versions of this command and of the daemon. Starts none."""
    daemon = None
    try:
        with connect(start=False) as client:
            daemon = str(client.status()["version"])
    except GpuschedError:
        pass  # that no daemon answers is no error here
    if settings.json:
        print_json({"version": __version__, "api": API, "daemon": daemon})
        return
    print(f"gpusched {__version__} (protocol {API})")
    print(f"daemon {daemon}" if daemon else "no daemon answers")
