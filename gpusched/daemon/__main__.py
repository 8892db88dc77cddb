"""`python -P -m gpusched.daemon`: what a command starts when no personal daemon runs yet. No click here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpusched import paths
from gpusched.daemon.app import serve
from gpusched.model.errors import GpuschedError


def main() -> int:
    """Run the daemon with the settings of the command line, the environment and the configuration file."""
    parser = argparse.ArgumentParser(prog="gpusched-daemon", description=__doc__)
    parser.add_argument("--state-dir", type=Path, default=None)
    parser.add_argument("--devices", help="nvml, or a simulation such as sim:4x24G")
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--faults", type=Path, help="a file with faults for simulated devices")
    parser.add_argument("--log-level")
    given = parser.parse_args()
    found = paths.config_path()
    config = given.config or (Path(found) if found else None)
    try:
        serve(given.state_dir or Path(paths.state_dir()), given.devices, config, given.faults, given.log_level)
    except GpuschedError as error:
        print(f"gpusched: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
