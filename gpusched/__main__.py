"""The `gpusched` command, also as `python -m gpusched`. Runs on any Python, to say a sentence where it is too old."""

import sys


def main() -> None:
    """Hand over to the command line, if this installation has one."""
    if sys.version_info < (3, 11):  # the training library runs on older ones
        sys.exit(
            "gpusched: the command line and the daemon need Python 3.11, this is %d.%d\n"
            "  gpusched.checkpoint works here; install the rest for all: pipx install gpusched" % sys.version_info[:2]
        )
    try:
        from gpusched.cli.main import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            "gpusched: %s is missing: this installation has only the training library (--no-deps)\n"
            "  for the command line and the daemon: pipx install gpusched" % error.name
        )
    run()


if __name__ == "__main__":
    main()
