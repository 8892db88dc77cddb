"""Starts daemons as processes of their own without paying for their imports each time.

It imports the daemon once and forks for every line of JSON on its stdin, {"argv": [...], "env": {...}, "log": path}; it
answers with the pid. What it forks is the daemon as `python -P -m gpusched.daemon` runs it. Its client is daemons.py.
"""

import json
import os
import signal
import sys

from gpusched.daemon.__main__ import main as daemon


def become(order):
    """In the child: look like a daemon that was started by itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir("/")
    os.environ.clear()
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    sys.argv = ["gpusched-daemon", *order["argv"]]
    sys.exit(daemon())


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return order
        print(pid, flush=True)
    return None


if __name__ == "__main__":
    given = main()
    if given is not None:
        become(given)
